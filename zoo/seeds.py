"""How several seeds of one recipe are told."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zoo.results import Record


def row_of(record: Record) -> tuple[str, ...]:
    """Return what the records of one row have in common: all seeds of a recipe on the same data and arithmetic."""
    return record.recipe, record.data.name, record.semantics


def over_seeds(scores: Sequence[float]) -> str:
    """Return mean, standard deviation and number of several accuracies in percent; of one, that it is one."""
    if len(scores) == 1:
        return "1"
    return f"{statistics.mean(scores):.2f}{spread(scores)}"


def spread(scores: Sequence[float]) -> str:
    """Return what stands after a mean: standard deviation and number of its accuracies, nothing after one alone."""
    return f" ± {statistics.stdev(scores):.2f} ({len(scores)})" if len(scores) > 1 else ""
