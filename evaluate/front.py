"""Accuracy versus size: a picture of each data set, with each network's front."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from evaluate.drawing import COLOURS, linear_range, svg_open, svg_text, svg_upright
from zoo.results import Record

FOLDER = "accuracy_vs_size"  # below the results
_WIDTH, _HEIGHT = 900, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 46, 630, 460  # the frame; the legend stands to the right of it
_CHARACTER = 7.4  # width of one 11 px sans-serif character, for keeping labels apart
_LEGEND = 32  # characters of the legend's room
_Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Point:
    size: float  # bytes
    top1: float  # percent
    text: str
    kind: str  # trained, converted or float


def fronts(records: Sequence[Record]) -> dict[Path, str]:
    """Return a picture of each data set, by its path below the results; ``records`` are sorted by data set."""
    groups = itertools.groupby(records, key=lambda r: r.data.label())
    return {front_path(label): front(label, list(group)) for label, group in groups}


def front_path(label: str) -> Path:
    """Return the picture's path below the results for a data set's label."""
    return Path(FOLDER, re.sub(r"[^A-Za-z0-9.]+", "-", label).strip("-") + ".svg")


def front(label: str, records: Sequence[Record]) -> str:
    """Return the SVG text: top-1 in percent over file size (log), a colour per model.

    A line joins the points of a network that no smaller or equal file of it beats, its float parent among them.
    """
    series = _series(records)
    points = [p for group in series.values() for p in group]
    title = f"{label}: top-1 accuracy versus size of the weights file"
    body = [
        svg_open(_WIDTH, _HEIGHT),
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        svg_text(_LEFT, 26, title, size=14, bold=True),
        *_chart(series, points),
    ]
    return "\n".join([*body, "</svg>", ""])


def _series(records: Sequence[Record]) -> dict[str, list[_Point]]:
    series: dict[str, list[_Point]] = {}
    for record in records:
        points = series.setdefault(record.model, [])
        kind = "trained" if record.trained else "converted"
        points.append(_Point(record.weights_bytes, record.top1, _label(record, records), kind))
        parent = _Point(record.float_bytes, record.float_top1, "float", "float")
        if parent not in points:
            points.append(parent)
    return series


def _label(record: Record, records: Sequence[Record]) -> str:
    twins = {r.semantics for r in records if (r.model, r.bits) == (record.model, record.bits)}
    return f"{record.bits} {record.semantics}" if len(twins) > 1 else record.bits


def _best(points: Sequence[_Point]) -> list[_Point]:
    """Return the points that no other of smaller or equal size reaches or beats, the smallest first."""
    kept: list[_Point] = []
    for point in sorted(points, key=lambda p: (p.size, -p.top1)):
        if not kept or point.top1 > kept[-1].top1:
            kept.append(point)
    return kept


def _mark(kind: str, x: float, y: float, colour: str, tip: str = "") -> str:
    fill = "#ffffff" if kind == "float" else colour
    style = f'fill="{fill}" stroke="{colour}" stroke-width="1.5"'
    inner = f"<title>{escape(tip)}</title>" if tip else ""
    if kind == "converted":
        return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {style}>{inner}</rect>'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {style}>{inner}</circle>'


def _chart(series: dict[str, list[_Point]], points: list[_Point]) -> list[str]:
    low, high = _log_range([p.size for p in points])
    bottom, top, step = linear_range([p.top1 for p in points])
    if max(p.top1 for p in points) > top - step / 4 and top < 100.0:
        top += step

    def x(size: float) -> float:
        return _LEFT + (math.log10(size) - low) / (high - low) * (_RIGHT - _LEFT)

    def y(top1: float) -> float:
        return _BOTTOM - (top1 - bottom) / (top - bottom) * (_BOTTOM - _TOP)

    body = _axes(x, y, (low, high), (bottom, top, step))
    labels: list[str] = []
    taken = [(x(p.size) - 5, y(p.top1) - 5, x(p.size) + 5, y(p.top1) + 5) for p in points]
    for index, (name, group) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x(p.size):.1f},{y(p.top1):.1f}" for p in _best(group))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.45"/>')
        for p in group:
            tip = f"{name}, {p.text}: {p.top1:.2f} %, {p.size:,.0f} bytes"
            body.append(_mark(p.kind, x(p.size), y(p.top1), colour, tip))
            left, base = _place(x(p.size), y(p.top1), len(p.text) * _CHARACTER, taken)
            # Drawn last and with a white rim, so that no line strikes a label out.
            halo = '<g stroke="#ffffff" stroke-width="3" paint-order="stroke">'
            labels.append(f"{halo}{svg_text(left, base, p.text, colour=colour)}</g>")
    return body + labels + _legend(series, {p.kind for p in points})


def _legend(series: dict[str, list[_Point]], kinds: set[str]) -> list[str]:
    colours = itertools.cycle(COLOURS)
    rows = [("trained", next(colours), name if len(name) <= _LEGEND else f"{name[: _LEGEND - 1]}…") for name in series]
    said = {"trained": "trained with quantization", "converted": "not trained", "float": "float parent, same images"}
    rows += [(kind, "#666666", text) for kind, text in said.items() if kind in kinds]
    return [
        part
        for index, (kind, colour, text) in enumerate(rows)
        for part in (
            _mark(kind, _RIGHT + 22, _TOP + 10 + 20 * index, colour),
            svg_text(_RIGHT + 34, _TOP + 14 + 20 * index, text),
        )
    ]


def _axes(x: _Scale, y: _Scale, span: tuple[float, float], ticks: tuple[float, float, float]) -> list[str]:
    body = []
    bottom, top, step = ticks
    for index in range(round((top - bottom) / step) + 1):
        value = bottom + index * step
        height = y(value)
        body.append(f'<path d="M{_LEFT} {height:.1f}H{_RIGHT}" stroke="#e3e3e3"/>')
        body.append(svg_text(_LEFT - 8, height + 4, f"{value:g}", anchor="end"))
    for exponent in range(math.floor(span[0]), math.ceil(span[1]) + 1):
        for mantissa in range(1, 10):
            size = mantissa * 10.0**exponent
            if not span[0] - 1e-9 <= math.log10(size) <= span[1] + 1e-9:
                continue
            tone = "#cccccc" if mantissa == 1 else "#f0f0f0"
            body.append(f'<path d="M{x(size):.1f} {_TOP}V{_BOTTOM}" stroke="{tone}"/>')
            if mantissa in (1, 2, 5):
                body.append(svg_text(x(size), _BOTTOM + 18, _bytes(size), anchor="middle"))
    frame = f'x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}"'
    body.append(f'<rect {frame} fill="none" stroke="#888888"/>')
    body.append(svg_text((_LEFT + _RIGHT) / 2, _BOTTOM + 42, "size of the weights file (log scale)", anchor="middle"))
    body.append(svg_upright((_TOP + _BOTTOM) / 2, "top-1 (%)"))
    return body


def _place(cx: float, cy: float, width: float, taken: list[tuple[float, float, float, float]]) -> tuple[float, float]:
    """Return left end and baseline of a label near a point, clear of what is there already where that is possible."""
    options = [
        (cx + dx, cy + 4 + dy)
        for dy in (0.0, -13.0, 13.0, -26.0, 26.0)
        for dx in (8.0, -8.0 - width, -width / 2)
        if (dx, dy) != (-width / 2, 0.0)
    ]
    inside = [(a, b) for a, b in options if a > _LEFT and a + width < _RIGHT and _TOP + 10 < b < _BOTTOM]
    boxes = [(a, b - 9, a + width, b + 2) for a, b in inside or options]
    overlap = [sum(p[0] < q[2] and q[0] < p[2] and p[1] < q[3] and q[1] < p[3] for q in taken) for p in boxes]
    best = boxes[overlap.index(min(overlap))]
    taken.append(best)
    return best[0], best[1] + 9


def _log_range(sizes: list[float]) -> tuple[float, float]:
    steps = [math.log10(m * 10.0**e) for e in range(1, 13) for m in (1, 2, 5)]  # 10 B to 5 TB
    low, high = math.log10(min(sizes)), math.log10(max(sizes))
    return max(s for s in steps if s < low - 0.02), min(s for s in steps if s > high + 0.02)


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:g} {unit}"
    return f"{size:g} B"
