"""Which layers' weights oscillate at the end of a training, variant beside variant, as an SVG."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from evaluate.drawing import COLOURS, svg_open, svg_text, svg_upright
from zoo.results import Record

_WIDTH, _HEIGHT = 860, 520
_LEFT, _TOP, _RIGHT, _BOTTOM = 70, 46, 660, 380


def facts(record: Record) -> dict[str, object]:
    """Return what the record's last training with ``oscillations`` noted: percentages, overall and by layer."""
    last: tuple[int, dict[str, object]] = (-1, {})
    for note in record.notes:
        key, _, text = note.partition(": ")
        if not key.startswith("train") or "oscillating_percent" not in text:
            continue
        # the first of several trainings has no position in its key
        position = int(key.removeprefix("train").lstrip("_") or 0)
        last = max(last, (position, json.loads(text)), key=lambda found: found[0])
    return last[1]


def oscillations(by_layer: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Return the SVG text; ``by_layer`` gives each variant's percentage of oscillating weights in each layer.

    Layers stand in the order of their names, a number in them by its value.
    """
    layers = sorted({layer for parts in by_layer.values() for layer in parts}, key=_natural)
    most = max((v for parts in by_layer.values() for v in parts.values()), default=0.0)
    step = next(s for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if most / s <= 6 or s == 20.0)
    top = step * (int(most / step) + 1)
    slot = (_RIGHT - _LEFT) / max(1, len(layers))
    bar = slot * 0.8 / max(1, len(by_layer))
    body = [
        svg_open(_WIDTH, _HEIGHT),
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>',
        svg_text(_LEFT, 26, title, size=14, bold=True),
    ]
    for index in range(round(top / step) + 1):
        height = _BOTTOM - index * step / top * (_BOTTOM - _TOP)
        body.append(f'<path d="M{_LEFT} {height:.1f}H{_RIGHT}" stroke="#e3e3e3"/>')
        body.append(svg_text(_LEFT - 8, height + 4, f"{index * step:g}", anchor="end"))
    for index, layer in enumerate(layers):
        x, y = _LEFT + (index + 0.55) * slot, _BOTTOM + 12
        body.append(f'<g transform="rotate(-50 {x:.1f} {y})">{svg_text(x, y, layer, anchor="end")}</g>')
    for number, (variant, parts) in enumerate(by_layer.items()):
        colour = COLOURS[number % len(COLOURS)]
        for index, layer in enumerate(layers):
            value = parts.get(layer, 0.0)
            height = value / top * (_BOTTOM - _TOP)
            x = _LEFT + (index + 0.1) * slot + number * bar
            body.append(f'<rect x="{x:.1f}" y="{_BOTTOM - height:.1f}" width="{bar:.1f}" height="{height:.1f}" '
                        f'fill="{colour}"><title>{variant}, {layer}: {value:g} %</title></rect>')  # fmt: skip
        row = _TOP + 14 + 20 * number
        body.append(f'<rect x="{_RIGHT + 18}" y="{row - 9}" width="10" height="10" fill="{colour}"/>')
        body.append(svg_text(_RIGHT + 34, row, variant))
    body.append(f'<rect x="{_LEFT}" y="{_TOP}" width="{_RIGHT - _LEFT}" height="{_BOTTOM - _TOP}" fill="none" '
                'stroke="#888888"/>')  # fmt: skip
    body.append(svg_upright((_TOP + _BOTTOM) / 2, "oscillating weights (%)"))
    return "\n".join([*body, "</svg>", ""])


def _natural(name: str) -> list[str | int]:
    # the pattern's group makes every other part a number
    return [int(part) if index % 2 else part for index, part in enumerate(re.split(r"(\d+)", name))]
