"""D: TFLite's double rounding, bit-equal to TFLM, CMSIS-NN and Ethos-U (docs/semantics.md)."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.integer.semantics._fixed_point import DoubleRounding, SingleRounding, quantize_multiplier
from zoo.integer.semantics._staircase import Staircase, Sum

NAME = "tflite"
DESCRIPTION = "Q31 multiplier, rounding doubling high multiply, rounding right shift (ties away from zero)"


def requantize(
    scale_in: float, scale_w: Tensor, scale_y: float, *, low: int, high: int, wide: bool | None = None
) -> nn.Module:
    """Return a module: exact accumulator ``[N, C, ...]`` -> centred codes in ``[low, high]``.

    The multiplier is the double ``s_x * s_w / s_y`` of float32 scales, ``scale_w`` [C] or [1]. ``wide`` takes int64
    accumulators (16-bit inputs, |acc| < 2^47) and TFLite's 15-bit multiplier; by default iff the output has > 8 bits.
    """
    pairs = [quantize_multiplier(float(scale_in) * w / float(scale_y)) for w in scale_w.double().tolist()]
    wide = high - low > 255 if wide is None else wide
    return Staircase((SingleRounding if wide else DoubleRounding)(pairs), low, high)


class _Add(nn.Module):
    """Both inputs shifted left, rescaled by twice the larger scale; the sum rescaled."""

    def __init__(self, scale_a: float, scale_b: float, scale_y: float, left: int) -> None:
        super().__init__()
        twice, self.left = 2.0 * max(scale_a, scale_b), left
        self.a = DoubleRounding([quantize_multiplier(scale_a / twice)])
        self.b = DoubleRounding([quantize_multiplier(scale_b / twice)])
        self.y = DoubleRounding([quantize_multiplier(twice / (2.0**left * scale_y))])
        unit = 2.0**left * float(self.y.factor)
        self.factors = float(self.a.factor) * unit, float(self.b.factor) * unit

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        codes: Tensor = self.y(self.a(a << self.left) + self.b(b << self.left))
        return codes


def add(
    scale_a: float, zero_a: int, scale_b: float, zero_b: int, scale_y: float, zero_y: int, low: int, high: int,
    *, reach: int | None = None,
) -> nn.Module:  # fmt: skip
    """Return a module: two centred codes -> centred code of the sum, in ``[low, high]``.

    ``reach`` is the largest magnitude of an input code (default: 255 for outputs of up to 8 bits). The zero points
    play no part in this semantics. The left shift is 20 bits, and 15 where a tensor has more than 8 bits.
    """
    reach = (255 if high - low <= 255 else 65535) if reach is None else reach
    exact = _Add(scale_a, scale_b, scale_y, 15 if reach > 255 or high - low > 255 else 20)
    return Sum(exact, exact.y, exact.factors, low, high, reach)


def mean(scale_x: float, scale_y: float, count: int, low: int, high: int) -> nn.Module:
    """Return a module: sum over ``count`` centred codes -> centred code of the mean, 1/n folded into the multiplier."""
    mantissa, shift = quantize_multiplier(scale_x / scale_y)
    fold = min(count.bit_length() - 1, 32, 31 + shift)
    return Staircase(DoubleRounding([((mantissa << fold) // count, shift - fold)]), low, high)
