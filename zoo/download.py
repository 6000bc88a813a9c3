"""Fetch a file once, check its sha256 before anyone reads it, and only then give it its name."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from zoo.errors import DataError
from zoo.progress import bar


def fetch(url: str, sha256: str, path: Path, timeout: float = 30.0) -> Path:
    """Return ``path``, downloading it if it is not there; DataError when offline or when the hash differs."""
    if path.is_file():
        return path
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        digest = hashlib.sha256()
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(url, timeout=timeout) as response:
            blocks = iter(lambda: response.read(1 << 20), b"")
            for block in bar(blocks, f"download {path.name} [MiB]"):
                digest.update(block)
                out.write(block)
        if digest.hexdigest() != sha256:
            raise DataError(f"{url}: sha256 is {digest.hexdigest()[:12]}, expected {sha256[:12]}; the file was altered "
                            "or cut short: try again")  # fmt: skip
        os.replace(temporary, path)
        temporary = None
    except (urllib.error.URLError, TimeoutError) as error:
        reason = getattr(error, "reason", error)
        raise DataError(f"{url}: no download ({reason}); go online, or set ZOO_MIRROR to a folder that holds the file"
                        ) from None  # fmt: skip
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error}); free some space or set ZOO_CACHE"
                        ) from None  # fmt: skip
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
    return path
