"""A split in memory: pixels, labels, and the hash that says which images they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Split:
    """``images`` uint8 ``[N, S, S, C]`` (read-only, usually memory-mapped), ``labels`` int64 ``[N]``.

    ``subset`` is None for a whole published split and otherwise says which part this is.
    """

    name: str
    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]
    fingerprint: str
    subset: str | None
    classes: tuple[str, ...]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)


def fingerprint(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> str:
    """Return the sha256 over the pixels (uint8, row order, HWC) followed by the labels (little-endian int64)."""
    digest = hashlib.sha256()
    for start in range(0, len(images), 256):
        digest.update(np.ascontiguousarray(images[start : start + 256]).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()
