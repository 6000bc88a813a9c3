"""What each network keeps at each precision: one line per network, one column per format."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from evaluate.rows import Row, card_path, order
from zoo.seeds import spread

_HOW = {True: "trained", False: "converted"}


def headline(rows: Sequence[Row], absent: frozenset[str] = frozenset()) -> str:
    """Return the rows of one data set as a Markdown table, networks by lines and formats by columns.

    A cell has mean, deviation and number of seeds, and the signed distance in points of the mean from the float
    network. Trained and converted networks have a line each. ``absent`` are the recipes whose card is not in git; a
    second recipe of a cell is told by its name.
    """
    formats = list(dict.fromkeys(r.shown.bits for r in sorted(rows, key=lambda row: order(row.shown)[3:])))
    head = ["network", "quantization", "float", *formats]
    lines = [head, ["---", "---", *["---:"] * (len(head) - 2)]]
    for (model, trained), group in itertools.groupby(sorted(rows, key=_line), key=_line):
        found = list(group)
        parents = dict.fromkeys(f"{row.shown.float_top1:.2f}" for row in found)
        cells = [_cell([row for row in found if row.shown.bits == bits], absent) for bits in formats]
        lines.append([f"`{model}`", _HOW[trained], ", ".join(parents), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _line(row: Row) -> tuple[str, bool]:
    return row.shown.model, row.shown.trained


def _cell(rows: Sequence[Row], absent: frozenset[str]) -> str:
    several = len(rows) > 1
    return "<br>".join(_entry(row, row.shown.recipe in absent, several) for row in rows)


def _entry(row: Row, absent: bool, named: bool) -> str:
    reached = f"**{row.mean:.2f}**{spread(row.top1s)}"
    linked = reached if absent else f"[{reached}]({card_path(row.shown)})"
    # no minus before a zero
    gap = round(row.mean - row.shown.float_top1, 2) + 0.0
    return (f"`{row.shown.recipe}` " if named else "") + f"{linked}, {gap:+.2f}"
