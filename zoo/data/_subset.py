"""The canonical subset: which images a count stands for, on any machine."""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence

from zoo.errors import DataError


def balanced(keys: Sequence[str], groups: Sequence[Hashable], count: int, where: str) -> list[int]:
    """Return the ascending indices of ``count`` items, as evenly spread over the groups as their sizes allow.

    Within its group an item's rank is its place by sha256 of its key (UTF-8). The subset is the first ``count`` items
    by (rank, sha256): one item of every group, then a second one, and so on. So it depends on nothing but keys and
    groups, a smaller subset lies within a larger one, and a new item pushes out at most one other. Raises DataError
    for a count below 1 or beyond the items.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise DataError(f"{where}: the count must be a positive whole number, got {count!r}")
    if count > len(keys):
        raise DataError(f"{where}: {count:,} images asked for, it has {len(keys):,}; ask for fewer")
    digests = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in keys]
    rank = [0] * len(keys)
    filled: dict[Hashable, int] = {}
    for i in sorted(range(len(keys)), key=digests.__getitem__):
        rank[i] = filled.get(groups[i], 0)
        filled[groups[i]] = rank[i] + 1
    return sorted(sorted(range(len(keys)), key=lambda i: (rank[i], digests[i]))[:count])
