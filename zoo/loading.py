"""Behind ``zoo.load`` and ``zoo.quantize``."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from zoo import list_checkpoints
from zoo.artifact import checkpoint
from zoo.artifact.checkpoint import Network
from zoo.context import Images
from zoo.errors import ArtifactError, RecipeError, suggest
from zoo.paths import results_dir


def load_network(name_or_path: str | Path, *, integer: bool) -> Network:
    """Find, verify and build; see ``zoo.load``."""
    text = str(name_or_path)
    shipped = results_dir() / text / "checkpoint"
    if isinstance(name_or_path, str) and "/" not in text and shipped.is_dir():
        folder = shipped
    elif Path(name_or_path).is_dir():
        folder = Path(name_or_path)
        folder = folder / "checkpoint" if (folder / "checkpoint").is_dir() else folder
    else:
        raise ArtifactError(f"{text!r}: no such checkpoint or folder{suggest(text, list_checkpoints())}")
    return checkpoint.read(folder).network(integer=integer)


def quantize_network(model: nn.Module, recipe: str | dict[str, Any], calibration_loader: Iterable[Any]) -> Network:
    """Run a recipe's steps on a user's network; see ``zoo.quantize``."""
    from zoo.pipeline import execute, yaml_text
    from zoo.recipe import Recipe
    from zoo.run import compose, names

    if isinstance(recipe, str):
        if recipe not in names():
            raise RecipeError(f"recipe {recipe!r} is unknown{suggest(recipe, names())}")
        fields = compose([f"recipe={recipe}"])
    else:
        fields = {"name": "custom", "model": {}, "data": {}} | dict(recipe)
    parsed = Recipe.parse(fields)
    images = Images.from_loader(calibration_loader)
    training = model.training
    try:
        graph, program, semantics, _ = execute(parsed, model, images, {})
    finally:
        model.train(training)
    channels = program.input_shape[0]
    config = {
        "name": "custom", "architecture": type(model).__name__, "license": "unknown", "semantics": semantics,
        "num_classes": 0, "labels": [], "quantization_config": {}, "provenance": {},
        "preprocess": {
            "size": list(program.input_shape[1:]), "mean": [0.0] * channels, "std": [1.0] * channels,
            "resize": None, "interpolation": "bilinear",
        },
    }  # fmt: skip
    card = (
        f"# {config['architecture']}, quantized\n\nMade by `zoo.quantize` with the steps of `{parsed.name}`, "
        f"arithmetic `{semantics}`. Its accuracy was not measured.\n"
    )
    kept = {k: v for k, v in fields.items() if k not in ("model", "data")}
    return Network(graph, program, config, card, yaml_text(kept))
