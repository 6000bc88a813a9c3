"""Decode once into a memory-mapped uint8 cache. A cache folder appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from zoo.data._split import fingerprint
from zoo.errors import DataError
from zoo.progress import bar

VERSION = 1
Rows = Iterator[tuple[np.ndarray[Any, Any], int]]
Cached = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any], str]


def cache_dir() -> Path:
    """Return ``$ZOO_CACHE`` or ``~/.cache/zoo``."""
    return Path(os.environ.get("ZOO_CACHE") or Path.home() / ".cache" / "zoo")


def cached(
    key: dict[str, Any], count: int, shape: tuple[int, int, int], rows: Callable[[], Rows], where: str, classes: int
) -> Cached:
    """Return memory-mapped pixels ``[count, *shape]``, labels and fingerprint, decoding ``rows()`` on the first call.

    ``key`` names the source files and settings. A folder whose sizes do not fit its own meta.json is made anew.
    Raises DataError for a label out of range, a wrong number of rows, a full disk or a missing permission.
    """
    digest = hashlib.sha256(json.dumps([VERSION, key, count, shape], sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_dir() / "data" / digest
    found = _open(folder, count, shape)
    if found is not None:
        return found
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{digest}.", dir=folder.parent))
        try:
            _fill(temporary, count, shape, rows, where, classes)
            if folder.exists():
                shutil.rmtree(folder, ignore_errors=True)
            try:
                os.replace(temporary, folder)
            except OSError:
                if _open(folder, count, shape) is None:  # another run was first
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise DataError(f"{folder.parent}: the image cache cannot be written ({error.strerror or error}); free some "
                        "space or set ZOO_CACHE to another folder") from None  # fmt: skip
    found = _open(folder, count, shape)
    assert found is not None
    return found


def _open(folder: Path, count: int, shape: tuple[int, int, int]) -> Cached | None:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    good = pixels.shape == (count, *shape) and pixels.dtype == np.uint8 and labels.shape == (count,)
    return (pixels, labels, meta["fingerprint"]) if good and meta.get("version") == VERSION else None


def _fill(
    folder: Path, count: int, shape: tuple[int, int, int], rows: Callable[[], Rows], where: str, classes: int
) -> None:
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=(count, *shape))
    labels = np.empty(count, np.int64)
    seen = 0
    for i, (image, label) in enumerate(bar(rows(), f"decode {where}", count)):
        if i >= count or image.shape != shape:
            raise DataError(f"{where}: row {i} has shape {list(image.shape)}, expected {list(shape)}")
        if not 0 <= label < classes:
            raise DataError(f"{where}: row {i} has label {label}, the data set has classes 0..{classes - 1}")
        pixels[i], labels[i] = image, label
        seen += 1
    if seen != count:
        raise DataError(f"{where}: {seen} rows, expected {count}; fetch the files again")
    pixels.flush()
    np.save(folder / "labels.npy", labels)
    (folder / "meta.json").write_text(json.dumps({"version": VERSION, "fingerprint": fingerprint(pixels, labels)}))
