"""What every command line of ours does around its ``main``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import wraps
from typing import NoReturn, ParamSpec

from zoo.errors import ZooError
from zoo.memory import keep_freed

CLOSED = 141  # what a shell reports of a program that SIGPIPE ended
INTERRUPTED = 130  # the same of SIGINT
P = ParamSpec("P")


def command(*, interrupted: str = "") -> Callable[[Callable[P, int]], Callable[P, int]]:
    """Make a ``main`` return 2 after one line on a ZooError, 130 after what Ctrl-C has left (``interrupted``)."""

    def decorate(main: Callable[P, int]) -> Callable[P, int]:
        @wraps(main)
        def run(*args: P.args, **kwargs: P.kwargs) -> int:
            try:
                return main(*args, **kwargs)
            except ZooError as error:
                print(f"error: {error}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print("interrupted" + (f": {interrupted}" if interrupted else ""), file=sys.stderr)
                return INTERRUPTED

        return run

    return decorate


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
