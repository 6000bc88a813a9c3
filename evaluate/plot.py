"""Accuracy versus size as an SVG, written by hand so that the same records give the same bytes everywhere."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from zoo.results import Record

_WIDTH, _HEIGHT = 860, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 46, 630, 460  # the frame; the legend stands to the right of it
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f6000", "#6a3d9a", "#444444")
_CHARACTER = 7.4  # width of one 11 px sans-serif character, for keeping labels apart
_Scale = Callable[[float], float]


@dataclass(frozen=True)
class _Point:
    size: float  # bytes
    top1: float  # percent
    text: str
    is_float: bool


def accuracy_vs_size(records: Sequence[Record]) -> str:
    """Return the SVG text: top-1 in percent over file size (log), a colour per model, the float parent as a ring."""
    series = _series(records)
    points = [p for group in series.values() for p in group]
    body = [
        svg_open(_WIDTH, _HEIGHT),
        "<title>Top-1 accuracy versus size of the weights</title>",
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        svg_text(
            _LEFT, 26, "Top-1 accuracy of the integer network versus size of its weights file", size=14, bold=True
        ),
    ]
    if points:
        body += _chart(series, points)
    else:
        body.append(svg_text(_WIDTH / 2, _HEIGHT / 2, "No record yet", anchor="middle"))
    return "\n".join([*body, "</svg>", ""])


def _series(records: Sequence[Record]) -> dict[str, list[_Point]]:
    series: dict[str, list[_Point]] = {}
    for (model, data), group in itertools.groupby(records, key=lambda r: (r.model, r.data.name)):
        rows = list(group)
        points = [_Point(r.weights_bytes, r.top1, _label(r, rows), False) for r in rows]
        floats = dict.fromkeys((r.float_bytes, r.float_top1) for r in rows)
        series.setdefault(f"{model}, {data}", []).extend([*points, *(_Point(*f, "float", True) for f in floats)])
    return series


def _label(record: Record, rows: list[Record]) -> str:
    twins = sum(r.bits == record.bits for r in rows) > 1
    return f"{record.bits} {record.semantics}" if twins else record.bits


def _chart(series: dict[str, list[_Point]], points: list[_Point]) -> list[str]:
    low, high = _log_range([p.size for p in points])
    bottom, top, step = linear_range([p.top1 for p in points])

    def x(size: float) -> float:
        return _LEFT + (math.log10(size) - low) / (high - low) * (_RIGHT - _LEFT)

    def y(top1: float) -> float:
        return _BOTTOM - (top1 - bottom) / (top - bottom) * (_BOTTOM - _TOP)

    body = _axes(x, y, (low, high), (bottom, top, step))
    labels: list[str] = []
    taken = [(x(p.size) - 5, y(p.top1) - 5, x(p.size) + 5, y(p.top1) + 5) for p in points]
    for index, (name, group) in enumerate(series.items()):
        colour = COLOURS[index % len(COLOURS)]
        path = " ".join(f"{x(p.size):.1f},{y(p.top1):.1f}" for p in sorted(group, key=lambda p: (p.size, p.top1)))
        body.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-opacity="0.45"/>')
        for p in group:
            fill = "#ffffff" if p.is_float else colour
            tip = f"{name}, {p.text}: {p.top1:.2f} %, {p.size:,.0f} bytes"
            body.append(
                f'<circle cx="{x(p.size):.1f}" cy="{y(p.top1):.1f}" r="4.5" fill="{fill}" stroke="{colour}" '
                f'stroke-width="1.5"><title>{escape(tip)}</title></circle>'
            )
            left, base = _place(x(p.size), y(p.top1), len(p.text) * _CHARACTER, taken)
            # Drawn last and with a white rim, so that no line strikes a label out.
            halo = '<g stroke="#ffffff" stroke-width="3" paint-order="stroke">'
            labels.append(f"{halo}{svg_text(left, base, p.text, colour=colour)}</g>")
        row = _TOP + 14 + 20 * index
        body.append(f'<circle cx="{_RIGHT + 22}" cy="{row - 4}" r="4.5" fill="{colour}"/>')
        body.append(svg_text(_RIGHT + 34, row, name))
    row = _TOP + 14 + 20 * len(series)
    body.append(f'<circle cx="{_RIGHT + 22}" cy="{row - 4}" r="4.5" fill="#ffffff" stroke="#666666"/>')
    body.append(svg_text(_RIGHT + 34, row, "float parent, same images"))
    return body + labels


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


def linear_range(values: list[float]) -> tuple[float, float, float]:
    """Return bottom, top and step of an axis in percent that holds these values."""
    step = next(s for s in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if (max(values) - min(values)) / s <= 8 or s == 20.0)
    bottom = max(0.0, math.floor(min(values) / step) * step - step)
    top = min(100.0, math.ceil(max(values) / step) * step)
    return bottom, max(top, bottom + step), step


def _bytes(size: float) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:g} {unit}"
    return f"{size:g} B"


def svg_open(width: int, height: int) -> str:
    """Return the opening tag of a picture, with the type that its texts are set in."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="11" fill="#222222">'
    )


def svg_upright(middle: float, text: str) -> str:
    """Return the name of the left axis, read from below, around the height ``middle``."""
    return f'<text x="20" y="{middle:g}" text-anchor="middle" transform="rotate(-90 20 {middle:g})">{text}</text>'


def svg_text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 11, bold: bool = False, colour: str = "#222222"
) -> str:
    """Return a line of text at x, y (baseline); ``anchor`` is start, middle or end."""
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}"{weight} fill="{colour}">'
        f"{escape(text)}</text>"
    )
