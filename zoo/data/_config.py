"""From ``recipes/data/NAME.yaml`` to a Split."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from zoo.data._split import Split, fingerprint
from zoo.errors import DataError
from zoo.resolve import check_arguments, load

Role = Literal["train", "calibration", "test"]


@dataclass(frozen=True)
class DataConfig:
    """``reader`` is a file of ``zoo/data`` with ``read(role, **args) -> Split``; ``description`` is for the listing."""

    name: str
    reader: str
    args: dict[str, Any] = field(default_factory=dict)
    description: str = ""


def find_reader(config: DataConfig) -> Any:
    """Return the module of the reader; RecipeError for an unknown one, or arguments it does not take.

    A reader that reads by another one has a ``check`` that takes the same arguments.
    """
    reader = load("zoo.data", config.reader, "data.reader")
    check_arguments(reader.read, "data.args", "test", **config.args)
    if hasattr(reader, "check"):
        reader.check(**config.args)
    return reader


def load_split(config: DataConfig, role: Role, limit: int | None = None) -> Split:
    """Return a split, or the first ``limit`` images of a fixed shuffle of it.

    Calibration images are training images, never test images. Raises RecipeError for an unknown reader or argument,
    DataError for missing or malformed data, and a limit below 1 or beyond the split.
    """
    split: Split = find_reader(config).read(role, **config.args)
    if len(split) == 0:
        raise DataError(f"{split.name}: the split is empty")
    if limit is None or limit == len(split):
        return split
    if limit < 1:
        raise DataError(f"{split.name}: the number of images must be positive, got {limit}")
    if limit > len(split):
        raise DataError(f"{split.name}: {limit} images asked for, it has {len(split)}")
    # the rows of the fixed shuffle, in file order
    rows = np.sort(np.random.Generator(np.random.PCG64(2718281828)).permutation(len(split))[:limit])
    images, labels = np.ascontiguousarray(split.images[rows]), split.labels[rows]
    subset = f"{limit} of {len(split)}, fixed shuffle" + (f", of {split.subset}" if split.subset else "")
    return Split(split.name, images, labels, fingerprint(images, labels), subset, split.classes)
