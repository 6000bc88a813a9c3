"""A split in memory: pixels, labels, and the hash that says which images they are."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from zoo.errors import DataError


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


def require_apart(given: Split, test: Split) -> None:
    """Raise DataError where a test image is among those given to the steps, byte for byte: no accuracy is honest then.

    Both hold images of one shape ``[S, S, C]``, or nothing is shared.
    """
    known = {_digest(image) for image in given.images}
    both = [i for i, image in enumerate(test.images) if _digest(image) in known]
    if both:
        raise DataError(f"{test.name}: {len(both)} of its {len(test)} images are among the {len(given)} of "
                        f"{given.name} too, number {both[0]} the first; remove them from one of the two")  # fmt: skip


def _digest(image: np.ndarray[Any, Any]) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()


def fingerprint(images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> str:
    """Return the sha256 over the pixels (uint8, row order, HWC) followed by the labels (little-endian int64)."""
    digest = hashlib.sha256()
    for start in range(0, len(images), 256):
        digest.update(np.ascontiguousarray(images[start : start + 256]).data)
    digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return digest.hexdigest()
