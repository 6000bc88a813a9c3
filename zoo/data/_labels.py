"""Class names that travel with a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

from zoo.errors import DataError, suggest

_FOLDER = Path(__file__).parent / "labels"


def class_names(name: str) -> tuple[str, ...]:
    """Return the class names of a label list in label order; an unknown list raises DataError."""
    path = _FOLDER / f"{name}.json"
    if not path.is_file():
        raise DataError(f"labels: {name!r} is unknown{suggest(name, [p.stem for p in _FOLDER.glob('*.json')])}")
    return tuple(json.loads(path.read_text(encoding="utf-8")))
