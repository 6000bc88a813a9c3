"""Fetch a file once, check its sha256 before anyone reads it, and only then give it its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo.errors import DataError
from zoo.progress import bar

_BLOCK = 1 << 20


class Altered(DataError):
    """What came is not what was asked for."""


def fetch(url: str, sha256: str, path: Path, timeout: float = 30.0) -> Path:
    """Return ``path``, whose content has this sha256; download it if it is not there or was damaged since.

    ``timeout`` is in seconds, for the connection and for each block. Raises DataError when offline, when the transfer
    breaks off, when the hash differs, and when the file cannot be written; what was there before stays then.
    """
    temporary: Path | None = None
    try:
        if path.is_file() and _sha256(path) == sha256:
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        os.chmod(temporary, 0o644)  # mkstemp makes it private to the user
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as out:
            for block in bar(_blocks(url, timeout), f"download {path.name} [MiB]"):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != sha256:
            raise Altered(f"{url}: sha256 is {digest.hexdigest()[:12]}, expected {sha256[:12]}; the file was altered "
                            "or cut short: try again")  # fmt: skip
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); free some space or set ZOO_CACHE"
                        ) from None  # fmt: skip
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path


def _blocks(url: str, timeout: float) -> Iterator[bytes]:
    """Yield the body; apart from the writing, because a broken connection is an OSError like a full disk."""
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            yield from iter(lambda: response.read(_BLOCK), b"")
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an address without a scheme
        raise DataError(f"{url}: no download ({_reason(error)}); go online, or set ZOO_MIRROR to a folder that holds "
                        "the file") from None  # fmt: skip


def _reason(error: Any) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    words = str(getattr(error, "reason", None) or error).split()
    return " ".join(words) or type(error).__name__


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()
