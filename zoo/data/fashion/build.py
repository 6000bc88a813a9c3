"""Make ``train.xz`` and ``test.xz`` from the four original Fashion-MNIST files: ``python build.py SOURCE TARGET``."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import sys
from pathlib import Path

import numpy as np

PARTS = {"train": "train", "test": "t10k"}
PER_CLASS = 500
# sha256 of the unpacked files, because redistributors compress them anew
ORIGINAL = {
    "train-images-idx3-ubyte.gz": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "train-labels-idx1-ubyte.gz": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "t10k-images-idx3-ubyte.gz": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "t10k-labels-idx1-ubyte.gz": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}


def select(labels: np.ndarray, per_class: int = PER_CLASS) -> np.ndarray:
    """Return the ascending rows of the first ``per_class`` images of each of the ten classes, ``[10 * per_class]``."""
    return np.sort(np.concatenate([np.flatnonzero(labels == c)[:per_class] for c in range(10)]))


def pack(images: np.ndarray, labels: np.ndarray) -> bytes:
    """Return xz of the labels ``[N]``, then of ``images`` uint8 ``[N, 28, 28]`` as differences to the pixel above."""
    delta = np.diff(images, axis=1, prepend=np.uint8(0)).astype(np.uint8)
    data = labels.astype(np.uint8).tobytes() + delta.tobytes()
    return lzma.compress(data, format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)


def original(path: Path) -> bytes:
    """Return an unpacked original file; SystemExit when its sha256 is another one."""
    data = gzip.decompress(path.read_bytes())
    if hashlib.sha256(data).hexdigest() != ORIGINAL[path.name]:
        raise SystemExit(f"{path}: not the file that Zalando published; fetch it again")
    return data


def main(source: Path, target: Path) -> None:
    """Write both files and print their sha256, which ``zoo/data/fashion_embedded.py`` checks."""
    for part, prefix in PARTS.items():
        # idx files: a header of 16 bytes before images, of 8 bytes before labels
        pixels = np.frombuffer(original(source / f"{prefix}-images-idx3-ubyte.gz")[16:], np.uint8)
        labels = np.frombuffer(original(source / f"{prefix}-labels-idx1-ubyte.gz")[8:], np.uint8)
        rows = select(labels)
        data = pack(pixels.reshape(-1, 28, 28)[rows], labels[rows])
        (target / f"{part}.xz").write_bytes(data)
        print(f"{part}.xz", len(data), hashlib.sha256(data).hexdigest())


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit("usage: python build.py SOURCE TARGET (two folders)")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
