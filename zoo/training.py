"""Recipes that end with a float network: its weights, and what they reach, for ``recipes/model`` to name."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from zoo import __version__, ranks
from zoo.artifact import files
from zoo.context import Context, Images
from zoo.data import DataConfig, load_split, require_apart
from zoo.evaluation import predict
from zoo.graph.trace import trace
from zoo.paths import output_dir, weights_name
from zoo.pipeline import (
    accelerator,
    add_teacher,
    check_classes,
    configure,
    cpu_name,
    git_since,
    git_state,
    remove,
    take,
    versions,
)
from zoo.place import held
from zoo.preprocess import Preprocess
from zoo.progress import bar
from zoo.recipe import Recipe, content_hash
from zoo.resolve import build
from zoo.results import FLOATS, dump, write_bytes, write_text
from zoo.train.log import csv_text
from zoo.weights import ModelConfig, build_model, load_weights, tensors_sha256


@dataclass(frozen=True)
class Trained:
    """Where the weights lie, their test accuracy in percent, on how many images, and what a model's YAML names."""

    path: Path
    top1: float
    n: int
    sha256: str
    tensors_sha256: str


def train_float(fields: dict[str, Any], *, output: Path | None = None, command: str = "") -> Trained:
    """Train, evaluate and write ``weights/<recipe>[-seed<n>].safetensors`` and ``.json`` below the results folder.

    Raises ZooError for a wrong recipe or data, ArtifactError where the files cannot be written.
    """
    recipe = Recipe.parse(fields)
    configure(recipe)
    root = Path(output) if output else output_dir()
    name = weights_name(recipe.name, recipe.seed)
    with held(root / FLOATS / f".{name}.work"):
        return _train(recipe, fields, root, name, command)


def _train(recipe: Recipe, fields: dict[str, Any], root: Path, name: str, command: str) -> Trained:
    git = git_state()
    config = build(ModelConfig, recipe.model, "model")
    data = build(DataConfig, recipe.data, "data")
    preprocess = Preprocess.from_dict(dict(config.preprocess))
    state, source = load_weights(config)
    model = build_model(config, state)
    train, test = load_split(data, "train", recipe.images), load_split(data, "test", recipe.test_limit)
    check_classes(model, test, preprocess)
    require_apart(train, test)
    images = Images(train.images, preprocess, train.labels)
    net = parent = trace(model, images.at(slice(0, 1)))
    context = Context(recipe.quant, images, parent, recipe.seed, recipe.budget, bar, code=git.text())
    context.work = root / FLOATS / f".{name}.work"
    add_teacher(recipe, context)
    started = time.perf_counter()
    for i in range(len(recipe.steps)):
        net = take(recipe, i, net, context)
    ranks.leave()
    seconds = round(time.perf_counter() - started + context.earlier, 1)
    trained = net.state_dict()
    model.load_state_dict({name: trained.get(name, value) for name, value in model.state_dict().items()})
    top1 = predict(model.eval(), test, preprocess, "float").top1
    tensors = {n: t.detach().clone().contiguous() for n, t in model.state_dict().items() if t.is_floating_point()}
    content = tensors_sha256(tensors)
    notes: dict[str, Any] = {
        "recipe": recipe.name, "recipe_sha256": content_hash(fields), "command": command, "top1": top1,
        "start": source, "tensors_sha256": content, "seconds": seconds, "seed": recipe.seed,
        "train": {"name": train.name, "n": len(train), "subset": train.subset, "fingerprint": train.fingerprint},
        "test": {"name": test.name, "n": len(test), "subset": test.subset, "fingerprint": test.fingerprint},
        "steps": [asdict(s) for s in recipe.steps], "log": context.log, "versions": versions(), "code": __version__,
        "machine": cpu_name(), "threads": recipe.threads, "model": config.name,
        "accelerator": accelerator(recipe),
        "git": asdict(git_since(git)),
    }  # fmt: skip
    path = root / FLOATS / f"{name}.safetensors"
    write_bytes(path, save(tensors))
    write_text(path.with_suffix(".csv"), csv_text(context.curves))
    digest = files.sha256(path)
    write_text(path.with_suffix(".json"), dump(notes | {"sha256": digest}, path, indent=1))
    remove(*context.kept)
    return Trained(path, top1, len(test), digest, content)
