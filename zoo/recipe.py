"""A recipe as data: plain YAML in, frozen dataclasses out, every error with the path of the field."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from zoo.errors import RecipeError
from zoo.order import check_order
from zoo.quant.spec import QuantConfig, check_ends
from zoo.resolve import build, class_name, load
from zoo.results import FLOATS

_NAME = re.compile(r"\w[\w.-]{0,199}\Z", re.ASCII)
_TAKEN = (FLOATS, "ablations", "accuracy_vs_size")  # folders of the results that hold no recipe's
_MOST_THREADS, _MOST_SEED = 1024, 2**32 - 1


@dataclass(frozen=True)
class Step:
    """One step: its name (a file of ``zoo/steps``) and its settings."""

    name: str
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """What ``recipes/recipe/NAME.yaml`` resolves to.

    ``model`` and ``data`` are the resolved groups; so is ``teacher``, a model whose logits the step train may follow
    (``defaults: - /model@teacher: NAME``). ``images`` caps the calibration images, ``test_limit`` the test
    images (a subset is labelled as one in the record); ``tolerance`` is what a re-run may differ by, in points.
    """

    name: str
    model: dict[str, Any]
    data: dict[str, Any]
    quant: QuantConfig
    steps: tuple[Step, ...]
    description: str = ""
    seed: int = 0
    budget: Literal["fast", "full"] = "fast"
    images: int | None = None
    test_limit: int | None = None
    threads: int = 2
    tolerance: dict[str, float] = field(default_factory=dict)
    teacher: dict[str, Any] | None = None

    @classmethod
    def parse(cls, fields: Any, where: str = "recipe") -> Recipe:
        """Return the recipe of a plain mapping; RecipeError says which field is wrong and what is known."""
        if not isinstance(fields, dict):
            raise RecipeError(f"{where}: expected a mapping")
        plain = dict(fields)
        steps = plain.pop("steps", None)
        if not isinstance(steps, list) or not steps:
            raise RecipeError(f"{where}.steps: expected a list of at least one step")
        recipe = build(cls, plain | {"steps": ()}, where)
        parsed = tuple(_step(entry, f"{where}.steps[{i}]") for i, entry in enumerate(steps))
        made = [(step.name, make_step(step, f"{where}.steps[{i}]")) for i, step in enumerate(parsed)]
        check_order(made, f"{where}.steps")
        object.__setattr__(recipe, "steps", parsed)
        check_ends(recipe.quant)
        if not _NAME.match(recipe.name):
            raise RecipeError(
                f"{where}.name: {recipe.name[:100]!r} cannot name a folder; use letters, digits, _ . and -"
            )
        if recipe.name in _TAKEN:
            raise RecipeError(
                f"{where}.name: {recipe.name!r} is a folder that holds other results; choose another name"
            )
        if not 1 <= recipe.threads <= _MOST_THREADS or not 0 <= recipe.seed <= _MOST_SEED:
            raise RecipeError(f"{where}: threads must be in 1..{_MOST_THREADS}, seed in 0..{_MOST_SEED}")
        if recipe.images is not None and recipe.images < 1:
            raise RecipeError(f"{where}.images: must be positive, got {recipe.images}")
        if recipe.test_limit is not None and recipe.test_limit < 1:
            raise RecipeError(f"{where}.test_limit: must be positive, got {recipe.test_limit}")
        if not all(0 <= points <= 100 for points in recipe.tolerance.values()):
            raise RecipeError(f"{where}.tolerance: must be points in 0..100, got {recipe.tolerance}")
        return recipe


def ends_in_float(fields: dict[str, Any]) -> bool:
    """Tell whether a resolved recipe ends in the training of a float network; steps before it may prepare its start."""
    steps = fields.get("steps")
    if not isinstance(steps, list) or not steps:
        return False
    named = [next(iter(s)) if isinstance(s, dict) and len(s) == 1 else s for s in steps]
    return named[-1] == "train" and "quantize" not in named and "integerize" not in named


def named_weights(model: Any, sha256: str) -> bool:
    """Tell whether a file of float weights is one that a resolved model names today; ``""`` is that of random ones."""
    weights = model.get("weights") if isinstance(model, dict) else None
    known = [source.get("sha256") or "" for source in weights["sources"]] if weights else [""]
    # a source without a sha256 of its file is checked by that of the tensors when it is read
    return sha256 in known or (bool(weights) and "" in known)


def _step(entry: Any, where: str) -> Step:
    if isinstance(entry, str):
        return Step(entry)
    if isinstance(entry, dict) and len(entry) == 1:
        ((name, settings),) = entry.items()
        if isinstance(name, str) and (settings is None or isinstance(settings, dict)):
            return Step(name, dict(settings or {}))
    raise RecipeError(f"{where}: a step is 'name' or 'name: {{settings}}', got {entry!r}")


def make_step(step: Step, where: str) -> Any:
    """Return the step object: class ``FoldBatchnorm`` of ``zoo/steps/fold_batchnorm.py`` with its settings."""
    module = load("zoo.steps", step.name, where)
    return build(getattr(module, class_name(step.name)), step.settings, f"{where}.{step.name}")


def content_hash(fields: dict[str, Any]) -> str:
    """Return the sha256 of what a resolved recipe computes, independent of key order.

    Descriptions are left out, and where the float weights may come from: see ``named_weights``.
    """
    plain = json.loads(json.dumps(fields))
    for part in (plain, plain.get("model"), plain.get("data"), plain.get("teacher")):
        if isinstance(part, dict):
            part.pop("description", None)
    for model in (plain.get("model"), plain.get("teacher")):
        weights = model.get("weights") if isinstance(model, dict) else None
        if isinstance(weights, dict):
            weights.pop("sources", None)
            weights.pop("tensors_sha256", None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
