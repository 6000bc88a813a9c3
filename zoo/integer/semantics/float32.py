"""F: float32 requantization, bit-equal to ONNX Runtime and XNNPACK (docs/semantics.md)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import QuantError
from zoo.integer.semantics._fixed_point import per_channel
from zoo.integer.semantics._staircase import aligned, chunks
from zoo.quant.ops import dense

NAME = "float32"
DESCRIPTION = "float32 multiplier, round half to even"


def _checked(factor: Tensor) -> Tensor:
    """Return the factor; QuantError where float32 has no number > 0 for it: zero times infinity is no code."""
    if not bool((torch.isfinite(factor) & (factor > 0)).all()):
        wrong = float(factor[~(torch.isfinite(factor) & (factor > 0))][0])
        raise QuantError(f"requantize: the factor {wrong!r} is no float32 > 0; calibrate scales that are nearer 1")
    return factor


class _Scale(nn.Module):
    """``clamp(round(float32(acc) * factor))``, every operation in float32."""

    def __init__(self, factor: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("factor", _checked(factor), persistent=False)

    factor: Tensor

    def rounding(self) -> tuple[Tensor, Tensor]:
        """Return how far this rounding lies above round-half, in steps: not at all."""
        return torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)

    def forward(self, acc: Tensor) -> Tensor:
        """Return the codes."""
        acc = dense(acc.to(torch.float32))
        out = torch.mul(acc, per_channel(self.factor, acc), out=torch.empty_like(acc))
        for part in chunks(out):
            part.round_().clamp_(self.low, self.high)
        return out


def requantize(
    scale_in: float, scale_w: Tensor, scale_y: float, *, low: int, high: int, wide: bool | None = None
) -> nn.Module:
    """Return a module: exact accumulator ``[N, C, ...]`` -> centred codes in ``[low, high]``.

    The multiplier is ``float32(s_x * s_w) / s_y`` in float32; ``wide`` changes nothing here.
    """
    product = torch.tensor(scale_in, dtype=torch.float32) * scale_w.to(torch.float32)
    return _Scale(product / torch.tensor(scale_y, dtype=torch.float32), low, high)


class _Add(nn.Module):
    """``round(fma(a, ra, fma(b, rb, z_y - (ra z_a + rb z_b)))) - z_y`` on codes with their zero points."""

    def __init__(self, scales: tuple[float, float, float], zeros: tuple[int, int, int], low: int, high: int) -> None:
        super().__init__()
        a, b, y = (torch.tensor(s, dtype=torch.float32) for s in scales)
        self.zeros = [float(z) for z in zeros]
        ratio_a, ratio_b = _checked(a / y), _checked(b / y)
        inner = (ratio_b * self.zeros[1]).double()
        shift = (ratio_a.double() * self.zeros[0] + inner).float()
        self.fixed = float(torch.tensor(self.zeros[2], dtype=torch.float32) - shift)
        if not math.isfinite(self.fixed):
            raise QuantError(f"add: the offset {self.fixed!r} is no float32; calibrate scales that are nearer 1")
        self.a, self.b = float(ratio_a), float(ratio_b)
        self.low, self.high = low, high

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        a, b = aligned(a, b)
        out = torch.empty_like(a)
        for x, z, result in zip(chunks(a), chunks(b), chunks(out), strict=True):
            # a code times a float32 is exact in float64, so one rounding to float32 is a fused multiply-add
            inner = z.double().add_(self.zeros[1]).mul_(self.b).add_(self.fixed).float()
            outer = x.double().add_(self.zeros[0]).mul_(self.a).add_(inner)
            result.copy_(outer).round_().sub_(self.zeros[2]).clamp_(self.low, self.high)
        return out


def add(
    scale_a: float, zero_a: int, scale_b: float, zero_b: int, scale_y: float, zero_y: int, low: int, high: int,
    *, reach: int | None = None,
) -> nn.Module:  # fmt: skip
    """Return a module: two centred codes -> centred code of the sum, in ``[low, high]``.

    Zero points are those of unsigned codes; a negative one is taken as int8's and moved by 128, as an exporter does.
    ``reach`` (see tflite) changes nothing here.
    """
    zeros = [z + 128 if z < 0 else z for z in (zero_a, zero_b, zero_y)]
    return _Add((scale_a, scale_b, scale_y), (zeros[0], zeros[1], zeros[2]), low, high)


def mean(scale_x: float, scale_y: float, count: int, low: int, high: int) -> nn.Module:
    """Return a module: sum over ``count`` centred codes -> centred code of the mean, factor ``s_x / (s_y n)``."""
    x, y = torch.tensor(scale_x, dtype=torch.float32), torch.tensor(scale_y, dtype=torch.float32)
    return _Scale((x / (y * float(count))).reshape(1), low, high)
