"""Class names that travel with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.errors import DataError, suggest

_FOLDER = Path(__file__).parent / "labels"


def class_names(name: str) -> tuple[str, ...]:
    """Return the class names of a label list in label order; an unknown list raises DataError."""
    known = sorted(p.stem for p in _FOLDER.glob("*.json"))
    if name not in known:  # a name, never a path: recipes of strangers say it
        raise DataError(f"labels: {name!r} is unknown{suggest(name, known)}")
    return tuple(json.loads((_FOLDER / f"{name}.json").read_text(encoding="utf-8")))
