"""A part of another data set's training split in the place of its test split: choices are made on it."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.data._config import DataConfig, Role, find_reader, load_split
from zoo.data._split import Split, fingerprint
from zoo.errors import DataError

_SHUFFLE = 3141592653  # another one than that of the limits, so that no limit picks the same images


def read(role: Role, reader: str, count: int, args: dict[str, Any] | None = None) -> Split:
    """Return ``count`` training images of another ``reader`` as the test split, or the others for training.

    Which images those are depends on the length of the training split alone. Raises DataError for a count that leaves
    one of the two parts empty, and what the other reader raises.
    """
    source = load_split(_source(reader, args), "train" if role == "test" else role)
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count < len(source):
        raise DataError(f"data.args.count: must be from 1 to {len(source) - 1}, got {count!r}")
    order = np.random.Generator(np.random.PCG64(_SHUFFLE)).permutation(len(source))
    rows = np.sort(order[:count] if role == "test" else order[count:])
    images, labels = np.ascontiguousarray(source.images[rows]), source.labels[rows]
    images.setflags(write=False)
    part = "held out" if role == "test" else "without those held out"
    of = f", of {source.subset}" if source.subset else ""
    subset = f"{len(rows)} of {len(source)} training images, {part}{of}"
    name = f"{source.name}-held-out" if role == "test" else source.name
    return Split(name, images, labels, fingerprint(images, labels), subset, source.classes)


def check(reader: str, args: dict[str, Any] | None = None, **_: Any) -> None:
    """Raise RecipeError or DataError for another reader that is not there, or does not take ``args``, or this one."""
    find_reader(_source(reader, args))


def _source(reader: str, args: dict[str, Any] | None) -> DataConfig:
    if not isinstance(reader, str) or not isinstance(args, dict | None):
        raise DataError(f"data.args: reader must be a name and args a mapping, got {reader!r} and {args!r}")
    if reader == "held_out":
        raise DataError("data.args.reader: held_out takes the images of another reader, not of itself")
    return DataConfig(reader, reader, dict(args or {}))
