"""The data set inside the package: 5,000 test and 5,000 training images of Fashion-MNIST (MIT licence)."""

from __future__ import annotations

import hashlib
import lzma
from pathlib import Path

import numpy as np

from zoo.data._config import Role
from zoo.data._labels import class_names
from zoo.data._split import Split, fingerprint
from zoo.errors import DataError

_FOLDER = Path(__file__).parent / "fashion"
_COUNT, _SIDE = 5000, 28
_SHA256 = {
    "train.xz": "270cd79b4d979ad7b3cebfd0f06bad2f2068f50a87e05328443f814ff1e669b0",
    "test.xz": "e7dd6027564d0d64731aba662348c49e6f32ee4b92dc086a7c95e0b0d821f600",
}


def read(role: Role) -> Split:
    """Return ``fashion-mnist-5k-test``, or ``fashion-mnist-5k-train`` for training and calibration."""
    part = "test" if role == "test" else "train"
    path = _FOLDER / f"{part}.xz"
    data = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(data).hexdigest() != _SHA256[path.name]:
        raise DataError(f"{path}: missing or altered; reinstall the package")
    raw = np.frombuffer(lzma.decompress(data), np.uint8)
    labels = raw[:_COUNT].astype(np.int64)
    # the file holds the difference of each pixel to the one above it: see fashion/build.py
    images = np.cumsum(raw[_COUNT:].reshape(_COUNT, _SIDE, _SIDE), axis=1, dtype=np.uint8)[..., None]
    images.setflags(write=False)
    subset = "5000 of 10000" if part == "test" else "5000 of 60000"
    return Split(
        f"fashion-mnist-5k-{part}", images, labels, fingerprint(images, labels), subset, class_names("fashion")
    )
