"""Decode once into a memory-mapped uint8 cache. A cache folder appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

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

    ``key`` names the source files and settings. A folder whose content no longer has its own fingerprint is made
    anew, and what a killed run left of this entry is removed. Raises DataError for no rows or a wrong number of
    them, a label out of range, a file that cannot be read, a full disk or a missing permission.
    """
    if count < 1:
        raise DataError(f"{where}: holds no images; fetch the files again")
    digest = hashlib.sha256(json.dumps([VERSION, key, count, shape], sort_keys=True).encode()).hexdigest()[:24]
    folder = cache_dir() / "data" / digest
    found = _open(folder, count, shape)
    if found is not None:
        return _labelled(found, where, classes)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent / f".{digest}.lock"):
            found = _open(folder, count, shape)
            if found is None:
                _remake(folder, count, shape, rows, where, classes)
                found = _open(folder, count, shape)
    except OSError as error:
        raise DataError(f"{folder.parent}: the image cache cannot be written ({error.strerror or error}); free some "
                        "space or set ZOO_CACHE to another folder") from None  # fmt: skip
    if found is None:
        raise DataError(f"{folder}: what was just written reads back differently; set ZOO_CACHE to another disk")
    return _labelled(found, where, classes)


def _labelled(found: Cached, where: str, classes: int) -> Cached:
    """Return what was found, whose labels another run may have checked against more classes."""
    for row in np.flatnonzero(found[1] >= classes)[:1]:
        _refuse_label(where, int(row), int(found[1][row]), classes)
    return found


def _refuse_label(where: str, row: int, label: int, classes: int) -> NoReturn:
    raise DataError(f"{where}: row {row} has label {label}, the data set has classes 0..{classes - 1}")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait for other runs that fill the same entry. The system drops the lock of a killed run."""
    try:
        import fcntl
    except ImportError:  # Windows: two runs may decode the same entry twice, the second one wins
        yield
        return
    with path.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remake(
    folder: Path, count: int, shape: tuple[int, int, int], rows: Callable[[], Rows], where: str, classes: int
) -> None:
    for left in folder.parent.glob(f".{folder.name}.*"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.parent / f".{folder.name}.{os.getpid()}"
    try:
        temporary.mkdir()
        _fill(temporary, count, shape, rows, where, classes)
        if folder.exists():
            shutil.rmtree(folder)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open(folder: Path, count: int, shape: tuple[int, int, int]) -> Cached | None:
    try:
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "pixels.npy", mmap_mode="r", allow_pickle=False)
        labels = np.load(folder / "labels.npy", allow_pickle=False)
        expected = str(meta["fingerprint"]) if meta["version"] == VERSION else ""
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None
    good = pixels.shape == (count, *shape) and pixels.dtype == np.uint8
    good = good and labels.shape == (count,) and labels.dtype == np.int64
    return (pixels, labels, expected) if good and fingerprint(pixels, labels) == expected else None


def _fill(
    folder: Path, count: int, shape: tuple[int, int, int], rows: Callable[[], Rows], where: str, classes: int
) -> None:
    labels = np.empty(count, np.int64)
    digest = hashlib.sha256()
    seen = 0
    # Written, not mapped: a mapped page that finds the disk full kills the process instead of raising OSError.
    with (folder / "pixels.npy").open("wb") as out:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
        np.lib.format.write_array_header_1_0(out, header)
        for i, (image, label) in enumerate(bar(_readable(rows(), where), f"decode {where}", count)):
            if i >= count:
                raise DataError(f"{where}: more than the expected {count} rows; fetch the files again")
            if image.shape != shape or image.dtype != np.uint8:
                got = f"{image.dtype} {list(image.shape)}"
                raise DataError(
                    f"{where}: row {i} is {got}, expected uint8 {list(shape)}; set the size of the data set"
                )
            if not 0 <= label < classes:
                _refuse_label(where, i, label, classes)
            data = image.tobytes()
            out.write(data)
            digest.update(data)
            labels[i] = label
            seen += 1
    if seen != count:
        raise DataError(f"{where}: {seen} rows, expected {count}; fetch the files again")
    digest.update(labels.astype("<i8").tobytes())
    with (folder / "labels.npy").open("wb") as out:
        np.save(out, labels)
    meta = {"version": VERSION, "fingerprint": digest.hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _readable(rows: Rows, where: str) -> Rows:
    """Tell a file that cannot be read from a cache that cannot be written: both are OSErrors."""
    try:
        yield from rows
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror or error}); mend its permissions or fetch it again"
                        ) from None  # fmt: skip
