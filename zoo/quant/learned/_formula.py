"""Fake quantization with a learned range in operations that ``torch.compile`` can fuse with their neighbours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zoo.quant import ops


class _Round(torch.autograd.Function):
    """Round half to even; the gradient passes."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad


class _Slowed(torch.autograd.Function):
    """The value as it is; its gradient times ``gain``."""

    @staticmethod
    def forward(x: Tensor, gain: float) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.gain = inputs[1]

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return grad * ctx.gain, None


def formula(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, gain: float, rounding: bool
) -> Tensor:
    """Return what ``LearnedRange`` does, equal to the bit, with its gradients left to autograd."""
    s = ops.expand(_Slowed.apply(scale, gain), x, axis)
    z = ops.expand(_Slowed.apply(zero_point, gain), x, axis)
    real, low, high = x.float() * (1.0 / s), qmin - z, qmax - z
    # not clamp: a value on an end is clipped, and a calibrated range has values exactly there
    clipped = torch.where(real <= low, low, torch.where(real >= high, high, real))
    codes = _Round.apply(clipped)
    if rounding:
        return (codes * s).to(x.dtype)  # type: ignore[no-any-return]
    # the second term is zero: it stands for the codes' part of the scale's gradient, without the rounding
    return (codes * s.detach() + clipped.detach() * (s - s.detach())).to(x.dtype)  # type: ignore[no-any-return]
