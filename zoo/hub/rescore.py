"""Measure a checkpoint again on the images of its record."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from zoo.artifact.checkpoint import Checkpoint
from zoo.data import DataConfig, Split, load_split
from zoo.errors import ArtifactError
from zoo.evaluation import predict
from zoo.preprocess import Preprocess
from zoo.recipe import Recipe
from zoo.recipe_file import parse_recipe
from zoo.resolve import build


def recipe_of(read: Checkpoint, where: Path) -> Recipe:
    """Return the recipe that the checkpoint of a folder holds; RecipeError if it is none."""
    label = str(where / "recipe.yaml")
    return Recipe.parse(parse_recipe(read.recipe, label), label)


def images_of(recipe: Recipe, read: Checkpoint) -> Split:
    """Return the very images of the record; ArtifactError where the data set here holds others."""
    split = load_split(build(DataConfig, recipe.data, "data"), "test", recipe.test_limit)
    recorded = read.metrics["data"]["fingerprint"]
    if split.fingerprint != recorded:
        raise ArtifactError(
            f"{recipe.name}: the images of {split.name} have fingerprint {split.fingerprint[:12]}, the record's have "
            f"{recorded[:12]}; set ZOO_MIRROR to the data that it was measured on, or run the recipe again"
        )
    return split


def top1(net: nn.Module, split: Split, preprocess: Preprocess, label: str) -> float:
    """Return the accuracy in percent."""
    return predict(net, split, preprocess, label).top1


def check_accuracy(read: Checkpoint, split: Split) -> None:
    """Score the integer network that was read back; ArtifactError unless it is the record's number, exactly."""
    net = read.network(integer=True)
    found, said = top1(net, split, net.preprocess, f"re-score {read.config['name']}"), read.metrics["top1"]
    if abs(found - said) > 1e-9:
        raise ArtifactError(
            f"{read.config['name']}: {found:.4f} % top-1 on {len(split)} images, its record says {said:.4f} %; run the "
            "recipe again"
        )
