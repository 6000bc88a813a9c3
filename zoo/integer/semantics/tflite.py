"""D: TFLite's double rounding, bit-equal to TFLM, CMSIS-NN and Ethos-U (docs/semantics.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

NAME = "tflite"
DESCRIPTION = "Q31 multiplier, rounding doubling high multiply, rounding right shift (ties away from zero)"
_CHUNK = 1 << 17


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return ``(mantissa, shift)`` with ``real ~ mantissa * 2**(shift - 31)`` and a mantissa in [2^30, 2^31)."""
    if real == 0:
        return 0, 0
    fraction, exponent = math.frexp(real)
    mantissa = math.floor(fraction * 2**31 + 0.5)
    if mantissa == 2**31:
        mantissa, exponent = mantissa // 2, exponent + 1
    return (0, 0) if exponent < -31 else (mantissa, exponent)


def multiply(x: Tensor, mantissa: Tensor, shift: Tensor) -> Tensor:
    """Return the scaled int64 ``x``: SaturatingRoundingDoublingHighMul, then RoundingDivideByPOT, on int64 tensors."""
    left, right = shift.clamp(min=0), (-shift).clamp(min=0)
    product = (x << left) * mantissa
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    high = torch.div(product + nudge, 2**31, rounding_mode="trunc")
    one = torch.ones_like(right)
    mask = (one << right) - 1
    threshold = (mask >> 1) + (high < 0)
    return (high >> right) + ((high & mask) > threshold)


class _Requantize(nn.Module):
    def __init__(self, multiplier: list[float], low: int, high: int) -> None:
        super().__init__()
        pairs = [quantize_multiplier(m) for m in multiplier]
        self.low, self.high = low, high
        self.register_buffer("mantissa", torch.tensor([p[0] for p in pairs]), persistent=False)
        self.register_buffer("shift", torch.tensor([p[1] for p in pairs]), persistent=False)
        right = -self.shift
        digits = max(abs(low), abs(high), 1).bit_length() + 1
        # floor(acc M + 1/2 + 2^-(s+1)) is the double rounding of a non-negative value; exact while 53 bits hold it
        self.fused = low >= 0 and bool((right >= 1).all()) and int(right.max()) + 31 + digits <= 53
        self.register_buffer("factor", self.mantissa.double() * torch.exp2(self.shift.double() - 31), persistent=False)
        self.register_buffer("offset", 0.5 + torch.exp2(-(right.double() + 1)), persistent=False)

    mantissa: Tensor
    shift: Tensor
    factor: Tensor
    offset: Tensor

    def forward(self, acc: Tensor) -> Tensor:
        shape = [1, -1] + [1] * (acc.dim() - 2)
        if self.fused:
            y = torch.addcmul(self.offset.reshape(shape), acc.double(), self.factor.reshape(shape))
            return y.floor_().clamp_(self.low, self.high).float()
        x = multiply(acc.to(torch.int64), self.mantissa.reshape(shape), self.shift.reshape(shape))
        return x.clamp_(self.low, self.high).float()


class _Add(nn.Module):
    def __init__(self, scale_a: float, scale_b: float, scale_y: float, low: int, high: int) -> None:
        super().__init__()
        twice = 2 * max(scale_a, scale_b)
        self.a, self.b = quantize_multiplier(scale_a / twice), quantize_multiplier(scale_b / twice)
        self.y = quantize_multiplier(twice / (2**20 * scale_y))
        self.low, self.high = low, high

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        parts = [
            multiply(x.to(torch.int64) << 20, torch.tensor(m), torch.tensor(s))
            for x, (m, s) in ((a, self.a), (b, self.b))
        ]
        total = multiply(parts[0] + parts[1], torch.tensor(self.y[0]), torch.tensor(self.y[1]))
        return total.clamp_(self.low, self.high).float()


class _Mean(nn.Module):
    def __init__(self, scale_x: float, scale_y: float, count: int, low: int, high: int) -> None:
        super().__init__()
        mantissa, shift = quantize_multiplier(scale_x / scale_y)
        fold = min(count.bit_length() - 1, 32, 31 + shift)
        self.pair = (mantissa << fold) // count, shift - fold
        self.low, self.high = low, high

    def forward(self, acc: Tensor) -> Tensor:
        y = multiply(acc.to(torch.int64), torch.tensor(self.pair[0]), torch.tensor(self.pair[1]))
        return y.clamp_(self.low, self.high).float()


def requantize(scale_in: float, scale_w: Tensor, scale_y: float, *, low: int, high: int) -> nn.Module:
    """Return a module: exact accumulator ``[N, C, ...]`` -> centred codes, multiplier ``s_x s_w / s_y`` in double."""
    return _Requantize([scale_in * float(w) / scale_y for w in scale_w], low, high)


def add(
    scale_a: float, zero_a: int, scale_b: float, zero_b: int, scale_y: float, zero_y: int, low: int, high: int
) -> nn.Module:
    """Return a module for the sum of two centred codes: left shift by 20, twice the larger scale."""
    return _Add(scale_a, scale_b, scale_y, low, high)


def mean(scale_x: float, scale_y: float, count: int, low: int, high: int) -> nn.Module:
    """Return a module: sum over ``count`` centred codes -> centred code of the mean, 1/n folded into the multiplier."""
    return _Mean(scale_x, scale_y, count, low, high)
