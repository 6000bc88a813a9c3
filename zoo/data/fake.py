"""Synthetic images from a counter: for tests and dry runs; an accuracy on them says nothing about any data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.data._config import Role
from zoo.data._split import Split, fingerprint
from zoo.errors import DataError

_CELLS = 4
_MOST = 2**32  # bytes: beyond CIFAR-10 and the ImageNet subsets by far


def read(role: Role, size: int = 32, channels: int = 3, classes: int = 10, n: int = 512, seed: int = 0) -> Split:
    """Return ``n`` images ``[n, size, size, channels]``, labels 0, 1, ... in turn; ``subset`` is ``synthetic``.

    Each class is a random 4x4 pattern, each image that pattern under noise of the same strength. Training and
    calibration images are the same; test images have other noise. Only PCG64's raw output and integer arithmetic are
    used, which are the same on every machine and NumPy version. Raises DataError for a number out of range.
    """
    for name, value in (("size", size), ("classes", classes), ("n", n)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise DataError(f"data.args.{name}: must be a positive whole number, got {value!r}")
    if channels not in (1, 3):
        raise DataError(f"data.args.channels: must be 1 or 3, got {channels!r}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise DataError(f"data.args.seed: must be a whole number of 0 or more, got {seed!r}")
    if n * size * size * channels > _MOST:
        raise DataError(
            f"data.args: {n} images of {size} x {size} have more than {_MOST:,} bytes; make fewer or smaller ones"
        )
    part = "test" if role == "test" else "train"
    patterns = _bytes([seed, 0], (classes, _CELLS, _CELLS, channels))
    noise = _bytes([seed, 1 if part == "train" else 2], (n, size, size, channels))
    labels = np.arange(n, dtype=np.int64) % classes
    at = np.arange(size) * _CELLS // size
    images = noise
    for i, label in enumerate(labels):
        signal = patterns[label][at][:, at]
        images[i] = (signal.astype(np.uint16) + images[i]) >> 1
    images.setflags(write=False)
    names = tuple(f"class {i}" for i in range(classes))
    return Split(f"fake-{part}", images, labels, fingerprint(images, labels), "synthetic", names)


def _bytes(seed: list[int], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    words = np.random.PCG64(seed).random_raw(-(-count // 8))
    data = np.frombuffer(np.asarray(words, "<u8").tobytes(), np.uint8, count).copy()
    shaped: np.ndarray[Any, Any] = data.reshape(shape)
    return shaped
