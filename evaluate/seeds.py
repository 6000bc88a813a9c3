"""What the records that a table merges as seeds of one recipe have in common."""

from __future__ import annotations

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
