"""The rounding rules of docs/semantics.md on Python's unbounded integers and fractions: slow, and nothing shared."""

from __future__ import annotations

import random
from collections.abc import Sequence
from fractions import Fraction
from math import ceil, floor

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def clamp(x: int, low: int, high: int) -> int:
    """Return ``x`` limited to ``[low, high]``."""
    return min(max(x, low), high)


def exponent_of(real: Fraction) -> int:
    """Return ``e`` with ``2^(e-1) <= real < 2^e``."""
    e = real.numerator.bit_length() - real.denominator.bit_length()
    while Fraction(2) ** e <= real:
        e += 1
    while Fraction(2) ** (e - 1) > real:
        e -= 1
    return e


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return TFLite's 31-bit mantissa and shift of a factor >= 0."""
    if real == 0:
        return 0, 0
    e = exponent_of(Fraction(real))
    mantissa = floor(Fraction(real) / Fraction(2) ** e * 2**31 + Fraction(1, 2))
    if mantissa == 2**31:
        mantissa, e = 2**30, e + 1
    return (0, 0) if e < -31 else (mantissa, e)


def high_mul(a: int, b: int) -> int:
    """Return gemmlowp's SaturatingRoundingDoublingHighMul of two int32; C division truncates."""
    if a == b == INT32_MIN:
        return INT32_MAX
    nudged = a * b + (2**30 if a * b >= 0 else 1 - 2**30)
    return nudged // 2**31 if nudged >= 0 else -(-nudged // 2**31)


def divide_by_power(x: int, exponent: int) -> int:
    """Return gemmlowp's RoundingDivideByPOT, in C's words."""
    mask = 2**exponent - 1
    threshold = (mask >> 1) + (1 if x < 0 else 0)
    return (x >> exponent) + (1 if (x & mask) > threshold else 0)


def double_rounding(x: int, mantissa: int, shift: int) -> int:
    """Return MultiplyByQuantizedMultiplier of an int32; the left shift saturates."""
    shifted = clamp(x << max(shift, 0), INT32_MIN, INT32_MAX)
    return divide_by_power(high_mul(shifted, mantissa), max(-shift, 0))


def single_rounding(x: int, mantissa: int, shift: int) -> int:
    """Return MultiplyByQuantizedMultiplier of an int64: 15-bit mantissa, ties towards plus infinity."""
    reduced = (mantissa + 2**15) >> 16 if mantissa < 0x7FFF0000 else 0x7FFF
    return floor(Fraction(x * reduced, 2 ** (15 - shift)) + Fraction(1, 2))


def floor_constants(reals: Sequence[float], bits: int) -> tuple[list[int], int]:
    """Return the integer multipliers of the factors of a layer and their common shift."""
    shift = min(bits - exponent_of(Fraction(max(reals))), 62)
    return [min(floor(Fraction(r) * 2**shift + Fraction(1, 2)), 2**bits - 1) for r in reals], shift


def tflite_add(a: int, b: int, scales: tuple[float, float, float], left: int) -> int:
    """Return TFLite's ADD of two centred codes, not yet clamped."""
    scale_a, scale_b, scale_y = scales
    twice = 2 * max(scale_a, scale_b)
    first = double_rounding(a << left, *quantize_multiplier(scale_a / twice))
    second = double_rounding(b << left, *quantize_multiplier(scale_b / twice))
    return double_rounding(first + second, *quantize_multiplier(twice / (2**left * scale_y)))


def tflite_mean(total: int, scale_x: float, scale_y: float, count: int) -> int:
    """Return TFLite's MEAN from the sum of ``count`` centred codes, not yet clamped."""
    mantissa, shift = quantize_multiplier(scale_x / scale_y)
    fold = min(count.bit_length() - 1, 32, 31 + shift)
    return double_rounding(total, (mantissa << fold) // count, shift - fold)


def hard_points(real: float, low: int, high: int, reach: int, seed: int) -> list[int]:
    """Return accumulators beside the steps of ``x * real``, beside powers of two, the extremes, and random ones."""
    rng = random.Random(seed)
    levels = {low - 1, low, low + 1, -1, 0, 1, high - 1, high, high + 1, *(rng.randint(low, high) for _ in range(12))}
    points = {0, reach - 1, -reach}
    for level in levels:
        for half in (Fraction(0), Fraction(1, 2)):
            step = ceil((level - half) / Fraction(real))
            points |= {step - 1, step, step + 1}
    for power in range(0, reach.bit_length() - 1):
        points |= {sign * 2**power + d for sign in (-1, 1) for d in (-1, 0, 1)}
    points |= {rng.randint(-reach, reach - 1) for _ in range(20)}
    return sorted(p for p in points if -reach <= p < reach)
