"""Whether the steps of a recipe can follow each other, told before any of them runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from zoo.errors import RecipeError

_PLACES = {
    "float": "before quantize",
    "quantized": "between quantize and calibrate",
    "calibrated": "between calibrate and integerize",
}


def check_order(steps: Sequence[tuple[str, Any]], where: str) -> None:
    """Go through (name, step object) in order; RecipeError for the first step that takes no graph of its place.

    A step's class says by ``takes`` which stages of a graph it works on (``float``, ``quantized``, ``calibrated``), and
    by ``gives`` which it makes of it, where that is another (``integer`` at the end). One without ``takes`` works on
    any.
    """
    stage = "float"
    for i, (name, step) in enumerate(steps):
        takes = getattr(step, "takes", None)
        if takes is not None and stage not in takes:
            places = " or ".join(_PLACES[known] for known in takes)
            raise RecipeError(f"{where}[{i}]: {name} stands where the graph is {stage}; put it {places}")
        stage = getattr(step, "gives", stage)
