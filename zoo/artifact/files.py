"""Write and read checkpoint folders. A folder appears whole or not at all; nothing is parsed before its hash fits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from zoo.artifact import placing
from zoo.errors import ArtifactError
from zoo.results import dump

MANIFEST = "manifest.json"
SIGNATURE = "model.sig"
NAMES = ("model.safetensors", "config.json", "recipe.yaml", "metrics.json", "README.md", MANIFEST, SIGNATURE)
TEXT_LIMIT = 2**23  # bytes of a JSON or text file: a node takes about 500, a parsed value up to 30 times its text
_MAX_FILES = 1000
_MOST = 2**31  # bytes of all files, hashed before any is parsed


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(handle)


def _slow(handle: Any) -> str:
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def write_folder(
    folder: Path, fill: Callable[[Path], None], hint: str = "choose another place with output=DIR"
) -> None:
    """Build a folder beside its final place with ``fill``, add the manifest, then swap it in.

    What killed saves left is removed. Raises ArtifactError in one line when the disk is full, when the place cannot be
    written, and when it holds anything but a checkpoint; what was there then stays.
    """
    # a symbolic link stays one: what it points to is replaced
    folder = Path(os.path.realpath(folder))
    temporaries: list[Path] = []

    def beside(suffix: str) -> Path:
        temporaries.append(Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=suffix, dir=folder.parent)))
        return temporaries[-1]

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with placing.alone(folder.parent) as locked:
            if locked:
                placing.sweep(folder)
            _refuse_others(folder)
            try:
                new = beside(".tmp")
                new.chmod(0o755)
                fill(new)
                (new / MANIFEST).write_bytes(dump(_manifest(new), folder / MANIFEST, indent=1).encode())
                for path in new.rglob("*"):
                    if path.is_file():
                        with path.open("rb") as handle:
                            os.fsync(handle.fileno())
                placing.flush(new)
                placing.place(new, folder, beside(".old"))
            finally:
                for path in temporaries:
                    shutil.rmtree(path, ignore_errors=True)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror or error}); free some space or {hint}"
                            ) from error  # fmt: skip


def _manifest(folder: Path) -> dict[str, Any]:
    entries = {
        path.relative_to(folder).as_posix(): {"sha256": sha256(path), "size": path.stat().st_size}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return {"format_version": 1, "files": entries}


def _refuse_others(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: is a file; a checkpoint needs a folder of its own, choose another name")
    known, ours = set(NAMES), False
    with contextlib.suppress(ArtifactError):
        known |= set(_entries(folder))
        ours = True
    for path in folder.rglob("*"):
        if path.relative_to(folder).as_posix() not in known and not (path.is_dir() and not path.is_symlink()):
            raise ArtifactError(f"{path}: is no part of a checkpoint and would be lost; choose another folder")
    # other programs have a manifest.json and a README.md too; a damaged checkpoint still has its weights
    damaged = all((folder / name).is_file() for name in (MANIFEST, "model.safetensors"))
    other = next(folder.iterdir(), None)
    if other is not None and not (ours or damaged):
        raise ArtifactError(f"{other}: would be lost, and no {MANIFEST} says that it is a checkpoint's; choose another "
                            "folder")  # fmt: skip


def verify(folder: Path) -> dict[str, str]:
    """Check every file against the manifest and return name -> sha256; ArtifactError names the first that differs."""
    folder = Path(folder)
    if not os.path.isdir(folder):
        raise ArtifactError(f"{folder}: no such folder; give a checkpoint's path or a name of list_checkpoints()")
    files = _entries(folder)
    if len(files) > _MAX_FILES:
        raise ArtifactError(f"{folder / MANIFEST}: lists {len(files):,} files, at most {_MAX_FILES:,} can be right")
    if sum(_size(folder / name) for name in files) > _MOST:
        raise ArtifactError(f"{folder / MANIFEST}: lists files of more than {_MOST:,} bytes; do not use it")
    return {name: _verified(folder, name, entry) for name, entry in sorted(files.items())}


def _entries(folder: Path) -> dict[str, Any]:
    """Return what a checkpoint's manifest lists; ArtifactError for a manifest that is none of ours."""
    manifest = parse(folder / MANIFEST, folder / MANIFEST)
    version = manifest.get("format_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version != 1:
        raise ArtifactError(f"{folder / MANIFEST}: format_version {version!r} is unknown, this version reads 1; "
                            "upgrade the package")  # fmt: skip
    files = manifest.get("files")
    if not isinstance(files, dict) or not {"model.safetensors", "config.json"} <= set(files):
        raise ArtifactError(f"{folder / MANIFEST}: must list model.safetensors and config.json; "
                            "fetch the checkpoint again")  # fmt: skip
    return files


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (OSError, ValueError):  # what it is that cannot be looked at is said where it is read
        return 0


def _verified(folder: Path, name: str, entry: Any) -> str:
    path = folder / name
    # one way only to write a name: a manifest cannot have one file hashed a thousand times
    plain = PurePosixPath(name).as_posix() == name and not PurePosixPath(name).is_absolute()
    if ".." in PurePosixPath(name).parts or not plain or not isinstance(entry, dict):
        raise ArtifactError(f"{folder / MANIFEST}: entry {name[:100]!r} is not a file of this folder; do not use it")
    if not os.path.isfile(path):
        raise ArtifactError(
            f"{folder}: the manifest lists {name[:100]!r}, which is missing; fetch the checkpoint again"
        )
    _refuse_outside(folder, path)
    try:
        found = sha256(path)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    _compare(path, found, entry.get("sha256"))
    return found


def _compare(path: Path, found: str, wanted: Any) -> None:
    if found != wanted:
        raise ArtifactError(f"{path}: sha256 is {found[:12]}, the manifest says {str(wanted)[:12]!r}; "
                            "the file was altered or cut short: fetch the checkpoint again")  # fmt: skip


def _refuse_outside(folder: Path, path: Path) -> None:
    # realpath gives a loop of links as a path, where resolve raises
    inside, root = Path(os.path.realpath(path)), Path(os.path.realpath(folder))
    # the client of the Hugging Face Hub keeps ``snapshots/COMMIT/NAME`` as a link to ``blobs/HASH`` beside
    kept = root.parent.name == "snapshots" and inside.parent == root.parent.parent / "blobs"
    if not inside.is_relative_to(root) and not kept:
        raise ArtifactError(f"{path}: is a link that leaves the folder; put the file itself there")


def content(folder: Path, name: str, hashes: Mapping[str, str], most: int | None = TEXT_LIMIT) -> bytes:
    """Return a verified file's bytes: what is parsed is what was hashed, and a file that changes later changes nothing.

    ``hashes`` is what ``verify`` returned. A file of more than ``most`` bytes raises ArtifactError.
    """
    data = regular(Path(folder) / name, Path(folder) / name, most)
    _compare(Path(folder) / name, hashlib.sha256(data).hexdigest(), hashes[name])
    return data


def regular(path: Path, label: Any, most: int | None = TEXT_LIMIT, root: Path | None = None) -> bytes:
    """Return a file's bytes, at most ``most``; a pipe, a device, a link out of ``root`` raise ArtifactError.

    ``root`` is the checkpoint's folder, where that is not the file's own.
    """
    if not os.path.lexists(path):
        raise ArtifactError(f"{label}: missing; this is not a checkpoint folder")
    _refuse_outside(root or path.parent, path)
    try:
        # a pipe without a writer would wait for ever
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(handle, "rb") as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise ArtifactError(f"{label}: is not a regular file; fetch the checkpoint again")
            if most is not None and found.st_size > most:
                raise ArtifactError(f"{label}: has {found.st_size:,} bytes, at most {most:,} are read")
            return file.read() if most is None else file.read(most)
    except OSError as error:
        raise ArtifactError(f"{label}: cannot be read ({error.strerror or error}); check its permissions") from None


def parse(path: Path, label: Any, root: Path | None = None) -> Any:
    """Return the value of a JSON file; what ``regular`` and ``parse_text`` refuse raises ArtifactError."""
    return parse_text(regular(path, label, root=root), label)


def parse_text(data: bytes, label: Any) -> Any:
    """Return the value of JSON text in UTF-8.

    Duplicate keys, numbers beyond all bounds and malformed text raise ArtifactError.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            (key, _), *_ = Counter(k for k, _ in pairs).most_common(1)
            raise ValueError(f"the key {key[:100]!r} occurs twice")
        return found

    def finite(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{text[:40]} is not allowed")
        return value

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{label}: not readable as JSON ({error}); fetch the checkpoint again") from None
