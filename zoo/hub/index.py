"""The collection: which checkpoints are published, where, and the sha256 of each of their files. Needs no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from zoo.errors import HubError, RecipeError
from zoo.resolve import build
from zoo.results import dump, write_text

FORMAT_VERSION = 1


@dataclass(frozen=True)
class File:
    """A file of a published checkpoint; ``size`` is in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """A published checkpoint; ``top1`` and ``float_top1`` are in percent on ``n`` images of ``data``, ``bytes`` is the
    size of its weights. ``commit`` is the full id that ``tag`` names."""  # fmt: skip

    repo: str
    tag: str
    commit: str
    files: dict[str, File]
    bits: str
    semantics: str
    data: str
    n: int
    top1: float
    float_top1: float
    bytes: int


def index_path() -> Path:
    """Return ``$ZOO_INDEX``, an index of your own, or the one inside the package."""
    return Path(os.environ.get("ZOO_INDEX") or Path(__file__).resolve().parents[1] / "index.json")


def writable_path() -> Path | None:
    """Return the index that a publisher extends: ``$ZOO_INDEX``, or the checkout's own; None where neither is."""
    checkout = (Path(__file__).resolve().parents[2] / "pyproject.toml").is_file()
    return index_path() if checkout or os.environ.get("ZOO_INDEX") else None


def read(path: Path | None = None) -> dict[str, Entry]:
    """Return name -> entry; none where there is no file. HubError for a malformed one or an unknown version."""
    path = path or index_path()
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise HubError(f"{path}: is not readable as JSON ({error}); restore it, or set ZOO_INDEX to another") from None
    version = fields.get("format_version") if isinstance(fields, dict) else None
    if type(version) is not int or version != FORMAT_VERSION or not isinstance(fields.get("checkpoints"), dict):
        raise HubError(f"{path}: format_version {version!r} is unknown, this version reads {FORMAT_VERSION}; upgrade "
                       "the package")  # fmt: skip
    try:
        return {name: build(Entry, value, f"{path}: {name}") for name, value in fields["checkpoints"].items()}
    except RecipeError as error:
        raise HubError(f"{error}; restore the index, or publish again") from None


def add(name: str, entry: Entry, path: Path | None) -> Path | None:
    """Put a checkpoint into the index, in place of its older version, and return the index's path (None: no index).

    A reader sees the old index or the new one; publishers that write at the same time wait for each other.
    """
    if path is None:
        return None
    with _alone(path.parent):
        entries: dict[str, Any] = {key: asdict(value) for key, value in read(path).items()}
        entries[name] = asdict(entry)
        write_text(path, dump({"format_version": FORMAT_VERSION, "checkpoints": entries}, path, indent=1))
    return path


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    from zoo.artifact.placing import alone

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HubError(f"{folder}: cannot be written ({error.strerror}); set ZOO_INDEX to another file") from None
    with alone(folder):
        yield
