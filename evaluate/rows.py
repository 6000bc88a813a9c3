"""Rows of the tables: the records of one recipe on one data set, its seeds together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from evaluate.seeds import require_same
from zoo.results import Record
from zoo.seeds import over_seeds, row_of


@dataclass(frozen=True)
class Row:
    """``shown`` is the record of the lowest seed, ``top1s`` are the accuracies of all in percent."""

    shown: Record
    top1s: tuple[float, ...]

    @property
    def seeds(self) -> str:
        """What all seeds reach."""
        return over_seeds(self.top1s)

    @property
    def mean(self) -> float:
        """The mean over seeds, in percent."""
        return statistics.mean(self.top1s)


def order(record: Record) -> tuple[object, ...]:
    """Return the sort key of a row: data set, model, then most bits first."""
    weight, _, act = record.bits.removeprefix("W").partition("A")
    bits = tuple(-int(b) if b.isdigit() else 0 for b in (weight, act))
    return (
        record.data.name,
        record.data.label(),
        record.model,
        bits,
        record.bits,
        record.recipe,
        record.semantics,
        record.seed,
    )


def card_path(record: Record) -> str:
    """Return the path of a record's model card in a checkout."""
    return f"results/{record.checkpoint.as_posix()}/README.md"


def rows(records: Sequence[Record]) -> list[Row]:
    """Return the rows in order; raises ArtifactError where records that would be seeds of a row are not alike."""
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(row_of(record), []).append(record)
    return sorted(map(_with_seeds, groups.values()), key=lambda row: order(row.shown))


def _with_seeds(records: Sequence[Record]) -> Row:
    shown = min(records, key=lambda r: r.seed)
    parts: dict[str, list[object]] = {
        "test images": [r.data.fingerprint for r in records], "calibration images": [r.calibration for r in records],
        "model": [r.model for r in records], "float weights": [r.parent.sha256 for r in records],
        "steps": [r.steps for r in records], "bits": [r.bits for r in records], "budget": [r.budget for r in records],
        "bytes of weights": [r.weights_bytes for r in records],
        "bytes of activations": [r.activation_bytes for r in records if r.activation_bytes],
    }  # fmt: skip
    require_same(f"{shown.recipe} on {shown.data.name}", parts)
    return Row(shown, tuple(r.top1 for r in records))
