"""CIFAR-10 (Krizhevsky 2009): the mirror's parquet, else the official binary archive."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data._cache import cache_dir, cached
from zoo.data._config import Role
from zoo.data._labels import class_names
from zoo.data._sources import mirror, parquet_count, parquet_rows, stamp
from zoo.data._split import Split
from zoo.download import fetch
from zoo.errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"


def read(role: Role) -> Split:
    """Return the 10,000 test images, or the 50,000 training images for training and calibration, ``[N, 32, 32, 3]``.

    A mirror with fewer gives a subset that says so.

    Raises DataError for a mirror without the files, no download, or a file that is not what it should be.
    """
    part = "test" if role == "test" else "train"
    folder = mirror("data/cifar10")
    classes = class_names("cifar10")
    count = whole = 10_000 if part == "test" else 50_000
    if folder is not None:
        files = sorted(folder.glob(f"{part}-*.parquet"))
        if not files:
            raise DataError(f"{folder}: no {part}-*.parquet; fetch the folder again or unset ZOO_MIRROR")
        count = parquet_count(files)
        key: dict[str, Any] = {"cifar10": stamp(files)}
        pixels, labels, digest = cached(
            key, count, (32, 32, 3), lambda: parquet_rows(files, "img", "label", None), f"cifar10-{part}", 10
        )
    else:
        archive = cache_dir() / "downloads" / "cifar-10-binary.tar.gz"
        pixels, labels, digest = cached(
            {"cifar10": [SHA256, part]}, count, (32, 32, 3), lambda: _binary(fetch(URL, SHA256, archive), part),
            f"cifar10-{part}", 10,
        )  # fmt: skip
    subset = None if len(labels) == whole else f"{len(labels)} of {whole}"
    return Split(f"cifar10-{part}", pixels, labels, digest, subset, classes)


def _binary(archive: Path, part: str) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    names = ["test_batch.bin"] if part == "test" else [f"data_batch_{i}.bin" for i in range(1, 6)]
    try:
        with tarfile.open(archive) as tar:
            for name in names:
                handle = tar.extractfile(f"cifar-10-batches-bin/{name}")
                rows = np.frombuffer(handle.read() if handle else b"", np.uint8).reshape(-1, 3073)
                for row in rows:
                    yield row[1:].reshape(3, 32, 32).transpose(1, 2, 0), int(row[0])
    except (tarfile.TarError, KeyError, ValueError, EOFError, zlib.error) as error:
        raise DataError(f"{archive}: not the CIFAR-10 binary archive ({error}); remove it and try again") from None
