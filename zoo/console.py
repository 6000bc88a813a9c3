"""What every command line of ours does around its ``main``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NoReturn

from zoo.memory import keep_freed

CLOSED = 141  # what a shell reports of a program that SIGPIPE ended


def entry(main: Callable[[list[str]], int]) -> NoReturn:
    """Run ``main`` on the arguments and leave with its exit code; quietly where the reader (``| head``) has left."""
    keep_freed()
    try:
        code = main(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:
        # the interpreter flushes once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = CLOSED
    sys.exit(code)
