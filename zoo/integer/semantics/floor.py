"""Floor: one integer multiply and an arithmetic right shift, in the manner of DORY and NEMO (docs/semantics.md)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.integer.semantics._fixed_point import FloorShift
from zoo.integer.semantics._staircase import Staircase, Sum

NAME = "floor"
DESCRIPTION = "(acc * multiplier) >> shift, rounding towards minus infinity; one shift per layer"


def requantize(
    scale_in: float, scale_w: Tensor, scale_y: float, *, low: int, high: int, wide: bool | None = None
) -> nn.Module:
    """Return a module: exact accumulator ``[N, C, ...]`` -> centred codes in ``[low, high]``.

    The largest multiplier has 31 bits, or 15 where ``wide`` asks for int64 accumulators (16-bit inputs).
    """
    real = scale_w.double() * float(scale_in) / float(scale_y)
    return Staircase(FloorShift(real, 15 if wide else 31), low, high)


class _Add(nn.Module):
    def __init__(self, real: Tensor) -> None:
        super().__init__()
        self.scales = FloorShift(real, 31)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        first, second = self.scales.multiplier
        codes: Tensor = (a * first + b * second) >> self.scales.shift
        return codes


def add(
    scale_a: float, zero_a: int, scale_b: float, zero_b: int, scale_y: float, zero_y: int, low: int, high: int,
    *, reach: int | None = None,
) -> nn.Module:  # fmt: skip
    """Return a module: two centred codes -> centred code of the sum, one shift after adding both products."""
    reach = (255 if high - low <= 255 else 65535) if reach is None else reach
    exact = _Add(torch.tensor([scale_a / scale_y, scale_b / scale_y], dtype=torch.float64))
    first, second = exact.scales.factor.tolist()
    return Sum(exact, FloorShift(torch.ones(1, dtype=torch.float64), 31), (first, second), low, high, reach)


def mean(scale_x: float, scale_y: float, count: int, low: int, high: int) -> nn.Module:
    """Return a module: sum over ``count`` centred codes -> centred code of the mean, 1/n in the multiplier."""
    real = torch.tensor([scale_x / (scale_y * count)], dtype=torch.float64)
    return Staircase(FloorShift(real, 31), low, high)
