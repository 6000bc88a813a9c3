"""Write and read checkpoint folders. A folder appears whole or not at all; nothing is parsed before its hash fits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from zoo.errors import ArtifactError

MANIFEST = "manifest.json"
T = TypeVar("T")


def sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _slow(handle)


def _slow(handle: Any) -> str:
    digest = hashlib.sha256()
    while block := handle.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def dump(value: Any) -> str:
    """Return JSON with sorted keys and a final newline; NaN is refused."""
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"


def write_folder(folder: Path, fill: Callable[[Path], None]) -> None:
    """Build a folder beside its final place with ``fill``, add the manifest, then swap it in.

    Raises ArtifactError in one line when the disk is full or the place cannot be written; the old folder then stays.
    """
    folder = Path(folder)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
        temporary.chmod(0o755)
        fill(temporary)
        entries = {
            p.relative_to(temporary).as_posix(): {"sha256": sha256(p), "size": p.stat().st_size}
            for p in sorted(temporary.rglob("*"))
            if p.is_file()
        }
        (temporary / MANIFEST).write_text(dump({"format_version": 1, "files": entries}))
        for path in temporary.rglob("*"):
            if path.is_file():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
            os.replace(folder, old / "previous")
            os.replace(temporary, folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.replace(temporary, folder)
    except OSError as error:
        raise ArtifactError(f"{folder}: cannot be written ({error.strerror or error}); free some space or choose "
                            "another place with output=DIR") from error  # fmt: skip
    finally:
        if temporary is not None and temporary.exists():
            with contextlib.suppress(OSError):
                shutil.rmtree(temporary)


def verify(folder: Path) -> dict[str, str]:
    """Check every file against the manifest and return name -> sha256; ArtifactError names the first that differs."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder}: no such checkpoint folder")
    manifest = parse(folder / MANIFEST, (folder / MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("format_version") != 1:
        raise ArtifactError(f"{folder / MANIFEST}: format_version must be 1; a newer version of this package wrote it")
    files = manifest.get("files")
    if not isinstance(files, dict) or not {"model.safetensors", "config.json"} <= set(files):
        raise ArtifactError(f"{folder / MANIFEST}: must list model.safetensors and config.json")
    hashes = {}
    for name, entry in sorted(files.items()):
        path = folder / str(name)
        parts = Path(str(name)).parts
        if ".." in parts or Path(str(name)).is_absolute() or not isinstance(entry, dict):
            raise ArtifactError(f"{folder / MANIFEST}: entry {name!r} is not a file of this folder")
        if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
            raise ArtifactError(f"{path}: listed in the manifest but missing; fetch the checkpoint again")
        found = sha256(path)
        if found != entry.get("sha256"):
            raise ArtifactError(f"{path}: sha256 is {found[:12]}, the manifest says {str(entry.get('sha256'))[:12]}; "
                                "the file was altered or cut short: fetch the checkpoint again")  # fmt: skip
        hashes[str(name)] = found
    return hashes


def parse(path: Path, label: Any) -> Any:
    """Return a JSON file's value; duplicate keys, NaN and malformed text raise ArtifactError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [k for k, _ in pairs]
        if len(set(keys)) != len(keys):
            raise ValueError("a key occurs twice")
        return dict(pairs)

    def refuse(text: str) -> Any:
        raise ValueError(f"{text} is not allowed")

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except FileNotFoundError:
        raise ArtifactError(f"{label}: missing; this is not a checkpoint folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{label}: not readable as JSON ({error})") from None
