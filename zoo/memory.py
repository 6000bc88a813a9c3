"""How this process handles its memory."""

from __future__ import annotations

import ctypes
import sys

_MMAP_MAX, _TRIM_THRESHOLD = -4, -1  # glibc's malloc.h


def keep_freed() -> bool:
    """Let glibc keep what is freed, for the next pass over a network frees and asks for the same sizes again.

    Otherwise large tensors go back to the system, and half of a forward pass on the CPU may be page faults. It is for a
    process of our own; returns False, and changes nothing, where the C library is another one.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, -1))
