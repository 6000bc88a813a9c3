"""How several seeds of one recipe are told in a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from zoo.errors import ArtifactError


def require_same(what: str, parts: Mapping[str, Sequence[object]]) -> None:
    """Raise ArtifactError where records that a row would merge as seeds differ in ``parts``.

    It gives a value of each record by the name of what must be equal.
    """
    for name, values in parts.items():
        if any(value != values[0] for value in values):
            raise ArtifactError(f"{what}: its records of several seeds differ in {name}; remove the one that is "
                                "another experiment, or run it under a name of its own")  # fmt: skip


def over_seeds(scores: Sequence[float]) -> str:
    """Return mean, standard deviation and number of several accuracies in percent; of one, that it is one."""
    if len(scores) == 1:
        return "1"
    return f"{statistics.mean(scores):.2f}{spread(scores)}"


def spread(scores: Sequence[float]) -> str:
    """Return what stands after a mean: standard deviation and number of its accuracies, nothing after one alone."""
    return f" ± {statistics.stdev(scores):.2f} ({len(scores)})" if len(scores) > 1 else ""
