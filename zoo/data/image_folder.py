"""Any folder of class folders, ``ROOT/PART/CLASS/picture.jpg``: ImageNet as everyone unpacks it, or your own."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from zoo.data._cache import cached
from zoo.data._config import Role
from zoo.data._labels import class_names
from zoo.data._sources import check_picture, expand, square
from zoo.data._split import Split
from zoo.data._subset import balanced
from zoo.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".pgm", ".gif", ".tif", ".tiff")
# sha256 of the 1000 sorted WordNet ids of ILSVRC-2012 joined by newlines: their order is the order of the labels
_WNIDS = "385e0240499426c022b773be1ae4da780f057b89c9694c7f47199f62746b6edd"
_IMAGENET = {"train": 1_281_167, "test": 50_000}


def read(
    role: Role, root: str, train: str = "train", test: str = "val", name: str = "image_folder",
    count: int | None = None, test_count: int | None = None, size: int | None = None, mode: str = "RGB",
    interpolation: str = "bilinear",
) -> Split:  # fmt: skip
    """Return the pictures of ``root/test``, or those of ``root/train`` for training and calibration.

    Labels number the class folders in the order of their names (code points, NFC). The 1000 ImageNet folders so get
    the usual ImageNet labels, and their names. Files that are hidden or no pictures by suffix, and folders within a
    class folder, are ignored; pictures come in the order of their names.

    ``count`` (training and calibration) and ``test_count`` draw a canonical subset by ``CLASS/filename`` alone: within
    each class the files are ranked by sha256 of that text (UTF-8, NFC), and the first ``count`` by (rank, sha256) are
    taken. So everyone with the same files gets the same pictures, balanced over the classes, whatever the system, the
    order on disk, the dates and other files around; and a smaller subset lies within a larger one.

    ``size`` is the short side S in pixels before the centre crop to S x S (None: the first picture's own, which all
    must share), ``mode`` RGB or L. ``root`` may hold ``~`` and ``$NAME``. Raises DataError for a missing or empty
    folder, different classes in the two parts, too few pictures, or a picture that cannot be read.
    """
    channels = check_picture(size, mode, interpolation)
    for where, text in (("root", root), ("train", train), ("test", test), ("name", name)):
        if not isinstance(text, str) or not text:
            raise DataError(f"data.args.{where}: must be a text, got {text!r}")
    base = expand(root, "data.args.root")
    parts = {"train": base / train, "test": base / test}
    part = "test" if role == "test" else "train"
    _check_parts(parts)
    names = _classes(parts[part])
    other = parts["train" if part == "test" else "test"]
    if other.is_dir() and (differ := sorted(set(names) ^ set(_classes(other)))):
        raise DataError(
            f"{base}: class folder {differ[0]!r} is in only one of {train} and {test}, so labels would not agree; "
            "add or remove it"
        )
    keys, files, labels = _pictures(parts[part], names)
    total = len(files)
    wanted = test_count if part == "test" else count
    if wanted is not None:
        rows = balanced(keys, labels, wanted, str(parts[part]))
        keys, files, labels = ([column[i] for i in rows] for column in (keys, files, labels))  # type: ignore[assignment]
    imagenet = hashlib.sha256("\n".join(names).encode()).hexdigest() == _WNIDS
    side = size or square(files[0], None, mode, str(files[0])).shape[0]
    stamps = [[key, file.stat().st_size, file.stat().st_mtime_ns] for key, file in zip(keys, files, strict=True)]
    pixels, targets, digest = cached(
        {"image_folder": str(parts[part].resolve()), "files": stamps, "classes": names, "size": size, "mode": mode,
         "filter": interpolation},
        len(files), (side, side, channels),
        lambda: ((square(f, size, mode, str(f), interpolation), t) for f, t in zip(files, labels, strict=True)),
        f"{name}-{part}", len(names),
    )  # fmt: skip
    subset = None if len(files) == total else f"{len(files)} of {total}, balanced by hash"
    if imagenet and total != _IMAGENET[part]:
        subset = f"{subset or len(files)} of {_IMAGENET[part]}"
    return Split(f"{name}-{part}", pixels, targets, digest, subset, class_names("imagenet") if imagenet else names)


def _check_parts(parts: dict[str, Path]) -> None:
    train, test = (parts[p].resolve() for p in ("train", "test"))
    if train == test or train in test.parents or test in train.parents:
        raise DataError(f"{test}: training and test pictures share a folder; calibration must not see test pictures")


def _classes(folder: Path) -> tuple[str, ...]:
    """Return the names of the class folders, NFC (macOS stores decomposed ones), sorted by code point."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; set data.args.root, train and test to your class folders")
    names = [name for name, _ in _kept(folder, lambda entry: entry.is_dir())]
    if not names:
        raise DataError(f"{folder}: holds no class folders; sort the pictures into one folder per class")
    return tuple(names)


def _kept(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[tuple[str, Path]]:
    """Return what is wanted and not hidden in a folder, by its name (NFC) and in that order."""
    try:
        with os.scandir(folder) as entries:
            found = sorted(
                (unicodedata.normalize("NFC", e.name), Path(e.path)) for e in entries if e.name[0] != "." and wanted(e)
            )
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}); mend its permissions and links"
                        ) from None  # fmt: skip
    for name, path in found:
        # what a system cannot decode it gives as lone surrogates
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise DataError(f"{folder}: the name {os.fsencode(path.name)!r} is no UTF-8; rename it, for the order and "
                            "the labels are those of the names")  # fmt: skip
    if twins := [name for (name, _), (following, _) in pairwise(found) if name == following]:
        raise DataError(f"{folder}: two names are {twins[0]!r}, one composed and one decomposed (NFC, NFD); rename or "
                        "remove one")  # fmt: skip
    return found


def _is_picture(entry: os.DirEntry[str]) -> bool:
    return entry.name.lower().endswith(SUFFIXES) and entry.is_file()


def _pictures(folder: Path, names: tuple[str, ...]) -> tuple[list[str], list[Path], list[int]]:
    keys: list[str] = []
    files: list[Path] = []
    labels: list[int] = []
    places = dict(_kept(folder, lambda entry: entry.is_dir()))
    for label, name in enumerate(names):
        here = _kept(places[name], _is_picture)
        if not here:
            raise DataError(f"{places[name]}: holds no pictures; remove the folder or fetch its pictures again")
        keys += [f"{name}/{file}" for file, _ in here]
        files += [path for _, path in here]
        labels += [label] * len(here)
    return keys, files, labels
