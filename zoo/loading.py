"""Behind ``zoo.load`` and ``zoo.quantize``."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from zoo import list_checkpoints, list_recipes
from zoo.artifact import checkpoint
from zoo.artifact.card import render_unmeasured
from zoo.artifact.checkpoint import Network
from zoo.artifact.codec import encode
from zoo.context import Images
from zoo.errors import ArtifactError, DataError, GraphError, RecipeError, suggest
from zoo.evaluation import modes_kept
from zoo.hub import index
from zoo.hub.fetch import pull
from zoo.hub.names import is_address
from zoo.integer.shapes import classes
from zoo.paths import local_checkpoint, recipes_dir
from zoo.preprocess import Preprocess
from zoo.recipe import Recipe, Step, content_hash, ends_in_float
from zoo.recipe_file import read_recipe, yaml_text
from zoo.steps.calibrate import MINIMUM

_LEAST_SHARE = 0.02  # of the range that preprocessing can reach, which a loader's images reach at least
_BEYOND = 4  # of that range: no normalised noise lies so far off, values of another unit do


def load_network(name_or_path: str | Path, *, integer: bool) -> Network:
    """Find, verify and build; see ``zoo.load``."""
    folder = local_checkpoint(name_or_path)
    if folder is None:
        folder = _published(str(name_or_path))
    return checkpoint.read(folder).network(integer=integer)


def _published(name: str) -> Path:
    known = index.read()
    if name in known or is_address(name):
        if os.path.isdir(name.partition("/")[0]):
            # a path with a slip would be fetched from whoever has that name on the hub
            raise ArtifactError(
                f"{name!r}: no such folder; to fetch from the hub all the same: python -m zoo.pull {name}"
            )
        return pull(name).folder
    if name in list_recipes() and not ends_in_float(read_recipe(recipes_dir() / "recipe" / f"{name}.yaml")):
        raise ArtifactError(f"{name!r}: its checkpoint is not here; python -m zoo.run recipe={name} makes it")
    raise ArtifactError(f"{name!r}: no such checkpoint or folder{suggest(name, {*list_checkpoints(), *known})}")


def quantize_network(
    model: nn.Module, recipe: str | dict[str, Any], calibration_loader: Iterable[Any], *,
    preprocess: Mapping[str, Any] | Preprocess | None, labels: Sequence[str],
) -> Network:  # fmt: skip
    """Run a recipe's steps on a user's network; see ``zoo.quantize``."""
    from zoo import __version__
    from zoo.compose import check_names, compose, names
    from zoo.pipeline import execute, quantization_config, require_integers

    if not isinstance(model, nn.Module):
        raise GraphError(f"zoo.quantize: the network must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(recipe, str | Mapping):
        raise RecipeError(f"zoo.quantize: the recipe must be a name or a mapping, got {type(recipe).__name__}")
    if isinstance(recipe, str) and recipe.endswith((".yaml", ".yml")):
        fields = {"name": "custom", "model": {}, "data": {}} | read_recipe(Path(recipe))
    elif isinstance(recipe, str):
        if recipe not in names():
            raise RecipeError(f"recipe {recipe!r} is unknown{suggest(recipe, names())}")
        fields = compose([f"recipe={recipe}"])
    else:
        fields = {"name": "custom", "model": {}, "data": {}} | dict(recipe)
        if isinstance(fields.get("quant"), str):
            check_names("quant", fields["quant"])
            fields["quant"] = read_recipe(recipes_dir() / "quant" / f"{fields['quant']}.yaml")
    if ends_in_float(fields):
        raise RecipeError(f"{fields['name']}: trains a float network; take a recipe that ends in integerize")
    images = Images.from_loader(calibration_loader)
    parsed = _fit(Recipe.parse(fields), len(images))
    fields["steps"] = [{step.name: step.settings} if step.settings else step.name for step in parsed.steps]
    require_integers(parsed)
    if any(step.name == "train" for step in parsed.steps):
        raise RecipeError(
            f"{parsed.name}: trains with labels, which zoo.quantize does not take; choose a recipe without the step "
            "train, or write one for your network (docs/write_a_recipe.md)"
        )
    kept = {k: v for k, v in fields.items() if k not in ("model", "data")}
    text = yaml_text(kept)
    if parsed.teacher is not None and not parsed.model.get("preprocess"):
        raise RecipeError(
            "zoo.quantize: a recipe with a teacher needs the model that the teacher is of; leave teacher out"
        )
    if not all(isinstance(label, str) for label in labels):
        raise DataError("labels: must be texts, one for each class")
    made = _preprocess(preprocess, tuple(images.at(slice(0, 1)).shape[1:]))
    if misfit := _misfit(made, images, beyond=0 if preprocess is None else _BEYOND):
        if preprocess is not None:
            raise DataError(f"preprocess: {misfit}; mean and std are in pixels of 0..255: those for 0..1 times 255")
        warnings.warn(f"zoo.quantize: no preprocess is given, and the result's own {misfit}; give the mean and std of "
                      "your loader, or preprocess pictures yourself", stacklevel=3)  # fmt: skip
    with modes_kept(model):
        graph, program, semantics, _ = execute(parsed, model, images, {})
    count = classes(program)
    if labels and len(labels) != count:
        raise DataError(f"labels: got {len(labels)}, the network gives {count} classes; name each or none")
    config = {
        "name": "custom", "architecture": type(model).__name__, "license": "unknown", "semantics": semantics,
        "num_classes": count, "labels": list(labels), "preprocess": made.to_dict(),
        "quantization_config": quantization_config(program, semantics),
        "provenance": {
            "recipe_sha256": content_hash(kept), "code_version": __version__, "seed": parsed.seed,
            "calibration": {"n": len(images)},
        },
    }  # fmt: skip
    card = render_unmeasured(
        config | {"nodes": encode(program)[1]},
        recipe=parsed.name,
        images=len(images),
        preprocess=preprocess is not None,
    )
    return Network(graph, program, config, card, text)


def _preprocess(fields: Mapping[str, Any] | Preprocess | None, shape: tuple[int, ...]) -> Preprocess:
    fields = fields.to_dict() if isinstance(fields, Preprocess) else fields
    channels, height, width = shape
    if channels not in (1, 3):
        raise DataError(f"calibration: a picture has 1 or 3 channels, the loader gives {channels}")
    given = fields or {"mean": [0.0] * channels, "std": [1.0] * channels}
    made = Preprocess.from_dict({"size": [height, width]} | dict(given))
    if (made.channels, *made.size) != shape:
        raise DataError(
            f"preprocess: makes {[made.channels, *made.size]}, the loader gives {list(shape)}; make them equal"
        )
    return made


def _misfit(made: Preprocess, images: Images, beyond: float) -> str:
    """Return how the loader's values cannot be what pixels of 0..255 become, nothing where they can.

    They may lie ``beyond`` times the range of those outside it.
    """
    x = images.at(slice(None))
    least, most = float(x.min()), float(x.max())
    channels = list(zip(made.mean, made.std, strict=True))
    low, high = min(-m / s for m, s in channels), max((255.0 - m) / s for m, s in channels)
    span = high - low
    if most - least < _LEAST_SHARE * span or least < low - beyond * span or most > high + beyond * span:
        return f"makes values of {low:.4g} to {high:.4g}, the loader gives {least:.4g} to {most:.4g}"
    return ""


def _fit(recipe: Recipe, count: int) -> Recipe:
    """Let the steps of a shipped recipe make do with the images there are, and say so; calibrate refuses too few."""
    steps = []
    for step in recipe.steps:
        wanted = step.settings.get("images")
        fewer = {"images": max(count, MINIMUM)} if isinstance(wanted, int) and wanted > count else {}
        steps.append(Step(step.name, step.settings | fewer))
    if short := next((step for step, made in zip(recipe.steps, steps, strict=True) if step != made), None):
        wanted = short.settings["images"]
        warnings.warn(f"zoo.quantize: {count} images are given, the recipe's {short.name} takes {wanted:,}; give as "
                      "many for the accuracy that it stands for", stacklevel=4)  # fmt: skip
    return replace(recipe, steps=tuple(steps))
