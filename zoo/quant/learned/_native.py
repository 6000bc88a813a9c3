"""``LearnedRange`` and ``NormedRange`` by compiled kernels: one pass over memory each way."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.native.kernels import CLIPPING, ROUNDING, Kernels
from zoo.quant import ops


def suits(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> bool:
    """Tell whether ``NativeRange`` can stand for ``LearnedRange``: one scale, or symmetric rows of the first axis."""
    return Kernels.suit(x, scale) and ops.is_dense(x) and (scale.numel() == 1 or (axis == 0 and not zero_point.any()))


def _ends(zero_point: Tensor, qmin: int, qmax: int) -> tuple[float, float]:
    zero = float(zero_point.flatten()[0])
    return qmin - zero, qmax - zero


def _mode(rounding: bool) -> int:
    return ROUNDING if rounding else CLIPPING


class NativeRange(torch.autograd.Function):
    """``LearnedRange``, where ``suits``. Only x is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, kernels: Kernels, x: Tensor, scale: Tensor, zero_point: Tensor,
        qmin: int, qmax: int, gain: float, rounding: bool,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rest = (kernels, qmin, qmax, gain, rounding)  # type: ignore[attr-defined]
        return kernels.range_forward(x, scale, *_ends(zero_point, qmin, qmax))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, scale, zero_point = ctx.saved_tensors
        kernels, qmin, qmax, gain, rounding = ctx.rest
        passed, slope, outside = kernels.range_backward(
            x, ops.laid_like(grad, x), scale, *_ends(zero_point, qmin, qmax), _mode(rounding)
        )
        moved = (-outside * gain * scale).reshape(zero_point.shape) if ctx.needs_input_grad[3] else None
        return None, passed, slope.reshape(scale.shape) * gain, moved, None, None, None, None


class NativeNormed(torch.autograd.Function):
    """``NormedRange``: only ``u`` is kept for the backward pass, and the codes are computed again."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, kernels: Kernels, u: Tensor, gamma: Tensor, beta: Tensor,
        running: tuple[Tensor, Tensor], momentum: float, eps: float, scale: Tensor, zero_point: Tensor, qmin: int,
        qmax: int, gain: float, rounding: bool,
    ) -> Tensor:  # fmt: skip
        y, mean, deviation = kernels.normed_forward(
            u, gamma, beta, running, momentum, eps, float(scale), *_ends(zero_point, qmin, qmax), _mode(rounding)
        )
        ctx.save_for_backward(u, gamma, beta, mean, deviation, scale, zero_point)
        ctx.rest = (kernels, qmin, qmax, gain, rounding)  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        u, gamma, beta, mean, deviation, scale, zero_point = ctx.saved_tensors
        kernels, qmin, qmax, gain, rounding = ctx.rest
        step = float(scale)
        *grads, slope, outside = kernels.normed_backward(
            u, ops.laid_like(grad, u), gamma, beta, mean, deviation, step, *_ends(zero_point, qmin, qmax),
            _mode(rounding),
        )  # fmt: skip
        moved = (-outside * gain * step).reshape(zero_point.shape) if ctx.needs_input_grad[8] else None
        return None, *grads, None, None, None, (slope * gain).reshape(scale.shape), moved, None, None, None, None
