"""Give a finished folder its final name, so that a kill at any moment leaves the old folder or the new one there."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

_RENAME_EXCHANGE, _AT_FDCWD = 2, -100


@contextlib.contextmanager
def alone(parent: Path) -> Iterator[bool]:
    """Wait until no other process saves below ``parent``; gives False where the system has no such lock.

    The lock ends with the process, however that ends.
    """
    handle = None
    try:
        import fcntl

        handle = os.open(parent, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        locked = True
    except (ImportError, OSError):
        locked = False
    try:
        yield locked
    finally:
        if handle is not None:
            os.close(handle)


def sweep(folder: Path) -> None:
    """Remove what killed saves of this folder left beside it. Only for the holder of the lock."""
    left = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.(tmp|old)")
    for path in sorted(folder.parent.iterdir()):
        match = left.fullmatch(path.name)
        if match is None:
            continue
        if match[1] == "old" and not folder.exists() and (path / "previous").is_dir():
            os.replace(path / "previous", folder)
        shutil.rmtree(path, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Swap what two absolute paths name in one step; False where the system or the file system cannot."""
    try:
        swap = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)


def place(new: Path, folder: Path, spare: Path) -> None:
    """Rename ``new`` to ``folder`` and delete what was there; ``spare`` is an empty folder that may take it meanwhile.

    Without an atomic exchange there is a moment with nothing under the name; ``sweep`` mends a kill at that moment.
    """
    if not folder.exists():
        os.replace(new, folder)
    elif not exchange(new, folder):
        os.replace(folder, spare / "previous")
        try:
            os.replace(new, folder)
        except OSError:
            os.replace(spare / "previous", folder)
            raise
    flush(folder.parent)


def flush(parent: Path) -> None:
    """Write a folder's list of names to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
