"""Learning curves: ``python -m evaluate.curve FILE.csv ...`` writes ``FILE.svg`` beside each CSV of a training."""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path

from evaluate.drawing import COLOURS, linear_range, svg_open, svg_text
from zoo.console import command, entry
from zoo.errors import ArtifactError
from zoo.results import write_text

_WIDTH, _HEIGHT = 860, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 46, 790, 460
_Row = dict[str, float]
_LINES = (("accuracy", COLOURS[0], "training accuracy (%)"), ("holdout", COLOURS[2], "held-out accuracy (%)"))


def read(path: Path) -> list[_Row]:
    """Return the epochs of a training's CSV, empty cells left out; ArtifactError for a file that is none."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: is no CSV of a training ({error}); run the recipe again") from None
    if not rows or any(
        not {"accuracy", "loss"} <= set(row) or not all(map(math.isfinite, row.values())) for row in rows
    ):
        raise ArtifactError(f"{path}: has no epoch with accuracy and loss; run the recipe again")
    return rows


def curve(rows: Sequence[_Row], title: str) -> str:
    """Return the SVG text: accuracies (left axis) and loss (right axis) over the epochs of all trainings in a row.

    A dashed line stands where a new step train begins.
    """
    accuracies = [row[key] for row in rows for key, _, _ in _LINES if key in row]
    bottom, top, step = linear_range(accuracies)
    most = max(row["loss"] for row in rows) * 1.05 or 1.0

    def x(index: float) -> float:
        return _LEFT + (index + 1) / len(rows) * (_RIGHT - _LEFT)

    def height(value: float) -> float:
        return _BOTTOM - (value - bottom) / (top - bottom) * (_BOTTOM - _TOP)

    def depth(loss: float) -> float:
        return _BOTTOM - loss / most * (_BOTTOM - _TOP)

    body = [
        svg_open(_WIDTH, _HEIGHT),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        svg_text(_LEFT, 26, title, size=14, bold=True),
    ]
    for index in range(round((top - bottom) / step) + 1):
        value = bottom + index * step
        body.append(f'<path d="M{_LEFT} {height(value):.1f}H{_RIGHT}" stroke="#e3e3e3"/>')
        body.append(svg_text(_LEFT - 8, height(value) + 4, f"{value:g}", anchor="end"))
    for index in range(5):
        loss = most * index / 4
        body.append(svg_text(_RIGHT + 8, depth(loss) + 4, f"{loss:.2g}", colour=COLOURS[1]))
    every = max(1, len(rows) // 10)
    for index in range(every - 1, len(rows), every):
        body.append(svg_text(x(index), _BOTTOM + 18, f"{index + 1}", anchor="middle"))
    for index in range(1, len(rows)):
        if rows[index].get("position") != rows[index - 1].get("position"):
            body.append(f'<path d="M{x(index - 0.5):.1f} {_TOP}V{_BOTTOM}" stroke="#888888" stroke-dasharray="4 3"/>')
    body.append(_line(rows, "loss", x, depth, COLOURS[1]))
    body += [_line(rows, key, x, height, colour) for key, colour, _ in _LINES if any(key in row for row in rows)]
    body.append(f'<rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}" fill="none" '
                'stroke="#888888"/>')  # fmt: skip
    body.append(svg_text((_LEFT + _RIGHT) / 2, _BOTTOM + 42, "epoch", anchor="middle"))
    names = [*((c, n) for key, c, n in _LINES if any(key in row for row in rows)), (COLOURS[1], "loss (right axis)")]
    for index, (colour, name) in enumerate(names):
        body.append(svg_text(_LEFT + 12, _BOTTOM - 14 - 16 * index, name, colour=colour, bold=True))
    return "\n".join([*body, "</svg>", ""])


def _line(rows: Sequence[_Row], key: str, x: Callable[[float], float], y: Callable[[float], float], colour: str) -> str:
    points = " ".join(f"{x(i):.1f},{y(row[key]):.1f}" for i, row in enumerate(rows) if key in row)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


@command()
def main(arguments: Sequence[str]) -> int:
    """Render each CSV; return 0, or 2 for a file that is none."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.curve", description="Draw the course of trainings.")
    parser.add_argument("names", nargs="+", metavar="CSV", help="what a training wrote beside its record")
    for name in parser.parse_args(arguments).names:
        path = Path(name)
        write_text(path.with_suffix(".svg"), curve(read(path), path.stem))
        print(f"wrote {path.with_suffix('.svg')}")
    return 0


if __name__ == "__main__":
    entry(main)
