"""Image parquet files as the Hugging Face hub stores them: from a local folder, or from the hub at a commit."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.data._cache import cached
from zoo.data._config import Role
from zoo.data._labels import class_names
from zoo.data._sources import check_picture, expand, parquet_count, parquet_labels, parquet_rows, stamp
from zoo.data._split import Split
from zoo.data._subset import balanced
from zoo.errors import DataError


def read(
    role: Role, train: str, test: str, folder: str | None = None, repo_id: str | None = None,
    revision: str | None = None, name: str = "hf_parquet", image: str = "image", label: str = "label",
    labels: str | Sequence[str] | None = None, count: int | None = None, test_count: int | None = None,
    size: int | None = None, mode: str = "RGB", interpolation: str = "bilinear",
) -> Split:  # fmt: skip
    """Return the rows of the files matching ``test``, or of those matching ``train`` for training and calibration.

    The patterns (``data/train-*.parquet``) are relative to ``folder`` (may hold ``~`` and ``$NAME``), or to the data
    set ``repo_id`` at ``revision``, a full commit hash, which huggingface_hub downloads and keeps. Files come in the
    order of their names. ``image`` and ``label`` name the columns. ``labels`` names a list of zoo/data/labels or gives
    the class names (None: those in the file's own description).

    ``count`` (training and calibration) and ``test_count`` draw the subset of ``zoo.data._subset.balanced``: classes
    are the labels, the key of a row is ``FILENAME:ROW`` (row within the file, from 0). ``size`` is the short side in
    pixels before the centre crop (None: the first picture's own, which all must share), ``mode`` RGB or L.
    Raises DataError for missing or damaged files, unknown columns, labels out of range, or too few rows.
    """
    channels = check_picture(size, mode, interpolation)
    part = "test" if role == "test" else "train"
    pattern = test if part == "test" else train
    root = _root(folder, repo_id, revision, pattern)
    found = {"train": _match(root, train), "test": _match(root, test)}
    both = sorted(set(found["train"]) & set(found["test"]))
    if both or train == test:
        shared = both[0].name if both else train
        raise DataError(f"data.args: {shared} is in train and in test; calibration must not see test pictures")
    files = found[part]
    if not files:
        raise DataError(f"{root}: no file matches {pattern!r}; fetch the files, or set data.args.{part}")
    total = parquet_count(files)
    if not total:
        raise DataError(f"{files[0]}: holds no rows; fetch the file again")
    wanted = test_count if part == "test" else count
    rows = None if wanted is None else _draw(files, label, wanted, root)
    classes = _names(files[0], label, labels)
    shape = None if size is None else (size, size, channels)
    if shape is None:
        first, _ = next(parquet_rows(files, image, label, None, mode, rows or [0]))
        shape = (first.shape[0], first.shape[1], channels)
    key: dict[str, Any] = {
        "hf_parquet": [str(root.resolve()), stamp(files)], "columns": [image, label], "rows": rows, "size": size,
        "mode": mode, "filter": interpolation,
    }  # fmt: skip
    pixels, targets, digest = cached(
        key, total if rows is None else len(rows), shape,
        lambda: parquet_rows(files, image, label, size, mode, rows, interpolation), f"{name}-{part}", len(classes),
    )  # fmt: skip
    return Split(f"{name}-{part}", pixels, targets, digest, _subset(files, len(targets), total), classes)


def _root(folder: str | None, repo_id: str | None, revision: str | None, pattern: str) -> Path:
    if (folder is None) == (repo_id is None):
        raise DataError("data.args: set either folder or repo_id with revision")
    if folder is not None:
        root = expand(folder, "data.args.folder")
        if not root.is_dir():
            raise DataError(f"{root}: no such folder; set data.args.folder to the folder of the parquet files")
        return root
    if not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        raise DataError(f"data.args.revision: needs a commit hash of 40 hex digits, got {revision!r}; a branch moves")
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(str(repo_id), repo_type="dataset", revision=revision, allow_patterns=[pattern])
    except Exception as error:  # the client's errors differ between its versions
        reason = (str(error).strip().splitlines() or [""])[0][:120]
        raise DataError(
            f"hub {repo_id}: no download ({type(error).__name__}: {reason}); go online, log in if it is gated, or set "
            "data.args.folder"
        ) from None
    return Path(str(found))


def _match(root: Path, pattern: str) -> list[Path]:
    if not pattern or pattern.startswith(("/", "\\")) or ".." in pattern:
        raise DataError(f"data.args: {pattern!r} must be a file pattern relative to the folder or data set")
    return sorted((p for p in root.glob(pattern) if p.is_file()), key=lambda p: p.relative_to(root).as_posix())


def _draw(files: list[Path], label: str, count: int, root: Path) -> list[int]:
    keys: list[str] = []
    groups: list[int] = []
    for path in files:
        here = parquet_labels([path], label)
        groups += here
        keys += [f"{path.name}:{i}" for i in range(len(here))]
    return balanced(keys, groups, count, str(root))


def _subset(files: list[Path], rows: int, total: int) -> str | None:
    """Say which part of the published split this is, by ``-00003-of-00294`` in the files' names as well."""
    shards = {m[1] for p in files if (m := re.search(r"-of-(\d+)", p.name))}
    part = None if rows == total else f"{rows} of {total}, balanced by hash"
    if len(shards) == 1 and len(files) < (of := int(shards.pop())):
        return (f"{part}, of " if part else "") + f"{len(files)} of {of} files"
    return part


def _names(path: Path, label: str, labels: str | Sequence[str] | None) -> tuple[str, ...]:
    if isinstance(labels, str):
        return class_names(labels)
    if labels is not None:
        return tuple(str(name) for name in labels)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        text = (pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}")
        names = json.loads(text)["info"]["features"][label]["names"]
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
        names = None
    if not isinstance(names, list) or not names:
        raise DataError(f"{path}: names no classes of {label}; set data.args.labels to a label list or to the names")
    return tuple(str(name) for name in names)
