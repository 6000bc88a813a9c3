"""The errors a user sees: one line that says where, what, and what would do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ZooError(Exception):
    """Any refusal that the user can mend; the command line prints it as one line and exits with 2."""


class RecipeError(ZooError):
    """A recipe, a step or a field is unknown, of the wrong type, or out of range."""


class ModelError(ZooError):
    """A network cannot be built, or its float weights are missing, altered or do not fit."""


class DataError(ZooError):
    """A data set is missing, altered, too small or malformed."""


class GraphError(ZooError):
    """A network cannot be traced, or holds an operation that cannot be quantized."""


class QuantError(ZooError):
    """Ranges, scales or accumulators that no integer format can represent."""


class ArtifactError(ZooError):
    """A checkpoint folder is incomplete, altered, or of an unknown format version."""


class HubError(ZooError):
    """A hub cannot be reached, refuses, lacks what was asked for, or sends something else."""


def suggest(name: str, choices: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'? (known: ...)"`` for an unknown name."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"{hint} (known: {', '.join(known) or 'none'})"
