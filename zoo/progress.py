"""Progress bars for everything that takes more than a moment."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Any

SHOWN = "ZOO_SHOW_PROGRESS"  # set where standard error leads to a terminal by way of another process


def bar(items: Iterable[Any], label: str, total: int | None = None) -> Iterable[Any]:
    """Yield the items under a bar on standard error; on a terminal only, and only after a second."""
    from tqdm import tqdm

    # of several processes the first shows them
    seen = sys.stderr.isatty() or SHOWN in os.environ
    hidden = not seen or os.environ.get("RANK", "0") != "0"
    shown: Iterable[Any] = tqdm(items, desc=label, total=total, delay=1, leave=False, disable=hidden)
    return shown
