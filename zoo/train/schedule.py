"""The learning rate over a training, as a factor of its peak."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warm: float = 0.02) -> float:
    """Return the factor of a cosine schedule with a short linear warm-up over the share ``warm`` of all steps."""
    first = max(1, int(total * warm))
    if step < first:
        return (step + 1) / first
    return 0.5 * (1 + math.cos(math.pi * (step - first) / max(1, total - first)))


def linear(step: int, total: int, warm: float = 0.02) -> float:
    """Return the factor of a schedule that falls linearly to zero after a linear warm-up."""
    first = max(1, int(total * warm))
    return (step + 1) / first if step < first else 1.0 - (step - first) / max(1, total - first)


def constant(step: int, total: int, warm: float = 0.02) -> float:
    """Return 1 after a linear warm-up."""
    return min(1.0, (step + 1) / max(1, int(total * warm)))


SCHEDULES = {"cosine": cosine, "linear": linear, "constant": constant}


def rise(step: int, total: int, start: float, low: float, high: float) -> float:
    """Return ``low`` at the share ``start`` of all steps, going to ``high`` at the end on half a cosine."""
    done = (step / max(1, total) - start) / (1.0 - start)
    return high + (low - high) * 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done))))
