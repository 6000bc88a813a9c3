"""What pictures are drawn with: SVG written by hand, so that the same records give the same bytes everywhere."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#7f6000", "#6a3d9a", "#444444")


def linear_range(values: list[float]) -> tuple[float, float, float]:
    """Return bottom, top and step of an axis in percent that holds these values."""
    step = next(s for s in (0.5, 1.0, 2.0, 5.0, 10.0, 20.0) if (max(values) - min(values)) / s <= 8 or s == 20.0)
    bottom = max(0.0, math.floor(min(values) / step) * step - step)
    top = min(100.0, math.ceil(max(values) / step) * step)
    return bottom, max(top, bottom + step), step


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
