"""Float networks that recipes of this repository trained: what the JSON beside their weights says, as Markdown."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

from evaluate.seeds import require_same
from zoo.errors import ArtifactError
from zoo.results import EvalData
from zoo.seeds import over_seeds

_HEAD = """**Float networks trained here**

| recipe | data | images | top-1 | seeds | steps | teacher | tensors sha256 |
|---|---|---:|---:|---:|---:|---|---|
"""


def float_table(weights: Path) -> str:
    """Return a table of the networks in a folder of weights, seeds merged; empty where there is none.

    Raises ArtifactError for a file that is not what a training wrote.
    """
    found = sorted((_read(p) for p in weights.glob("*.json")), key=lambda n: (n["recipe"], n["seed"]))
    rows = [_row(list(group)) for _, group in itertools.groupby(found, key=lambda n: n["recipe"])]
    return "\n" + _HEAD + "".join(rows) if rows else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        notes: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(notes["recipe"], str) or type(notes["seed"]) is not int:
            raise TypeError("recipe must be a text and seed a whole number")
        _row([notes])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: is no record of a float training ({error!r}); run its recipe again") from None
    return notes


def _row(seeds: list[dict[str, Any]]) -> str:
    shown, scores = seeds[0], [float(n["top1"]) for n in seeds]
    parts = {
        "test images": [n["test"]["fingerprint"] for n in seeds], "steps": [n["steps"] for n in seeds],
        "training images": [n["train"]["fingerprint"] for n in seeds], "start": [n["start"] for n in seeds],
        "teacher": [n["log"].get("teacher", {}).get("sha256") for n in seeds],
    }  # fmt: skip
    require_same(shown["recipe"], parts)
    test = EvalData(**shown["test"] | {"subset": shown["test"]["subset"] or ""})
    steps = sum(int(part["steps"]) for name, part in shown["log"].items() if name.startswith("train"))
    cells = (
        f"`{shown['recipe']}`",
        test.label(),
        f"{test.n:,}",
        f"**{scores[0]:.2f}**",
        over_seeds(scores),
        f"{steps:,}",
        str(shown["log"].get("teacher", {}).get("model", "none")),
        f"`{shown['tensors_sha256'][:12]}`",
    )
    return "| " + " | ".join(cells) + " |\n"
