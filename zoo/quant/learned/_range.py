"""Fake quantization whose range has a gradient, in one pass through the caches each way."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo.native.kernels import Kernels
from zoo.quant import ops
from zoo.quant.learned._formula import formula
from zoo.quant.learned._native import NativeRange, suits

_SHORT = 64  # elements of a row below which a matrix product costs more than a temporary


def learned_range(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, gain: float, rounding: bool,
    kernels: Kernels | None = None, mid_rise: bool = False,
) -> Tensor:  # fmt: skip
    """Return ``LearnedRange`` of the tensor, in the form that suits: without a gradient, for a CPU, for all else."""
    if mid_rise:
        half = ops.half_step(scale, x, axis, gain)
        return learned_range(x - half, scale, zero_point, qmin, qmax, axis, gain, rounding, kernels) + half
    if not torch.is_grad_enabled():
        return ops.fake_quantize(x, scale, zero_point, qmin, qmax, axis)
    if not ops.readable(x):
        return formula(x, scale, zero_point, qmin, qmax, axis, gain, rounding)
    if kernels is not None and suits(x, scale, zero_point, axis):
        y: Tensor = NativeRange.apply(kernels, x, scale, zero_point, qmin, qmax, gain, rounding)
        return y
    return LearnedRange.apply(x, scale, zero_point, qmin, qmax, axis, gain, rounding)  # type: ignore[no-any-return]


class LearnedRange(torch.autograd.Function):
    """``y = (clamp(round(x / s) + z) - z) s``, straight-through for x inside the range.

    The gradient of the scale is that of LSQ (Esser et al. 2020, eq. 3): ``(y - [inside] x) / s``, times ``gain``. It is
    computed from the output, which the next layer keeps anyway, so nothing is rounded a second time. Without
    ``rounding`` it lacks the part inside the range, which is PACT's (Choi et al. 2018, eq. 2). The gradient of the
    zero point, where asked for, is ``-s`` outside the range (Bhalgat et al. 2020, eq. 7, with z = -beta / s).
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int,
        axis: int | None, gain: float, rounding: bool,
    ) -> Tensor:  # fmt: skip
        x = ops.dense(x)
        y = ops.fake_quantize(x, scale, zero_point, qmin, qmax, axis)
        ctx.save_for_backward(x, y, scale, zero_point)
        ctx.rest = (qmin, qmax, axis, gain, rounding)  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, y, scale, zero_point = ctx.saved_tensors
        qmin, qmax, axis, gain, rounding = ctx.rest
        rest = (None, None, None, None, None)
        learn, shift = ctx.needs_input_grad[1], ctx.needs_input_grad[2]
        if axis == 0 and scale.numel() > 1 and not bool(zero_point.any()):
            grad_x, slope = _by_row(x, y, grad, scale, (qmin, qmax), rounding if learn else None)
            return grad_x, None if slope is None else slope * gain, None, *rest
        if axis is not None and scale.numel() > 1:
            s, z = ops.expand(scale, x, axis), ops.expand(zero_point, x, axis)
            ends = (qmin - z) * s, (qmax - z) * s
            inside = (x > torch.minimum(*ends)).logical_and_(x < torch.maximum(*ends))
            grad_x = grad * inside
            dims = [d for d in range(x.dim()) if d != axis]
            slope = (grad * y - grad_x * (x if rounding else y)).sum(dims) / scale if learn else None
            return grad_x, None if slope is None else slope * gain, None, *rest
        s = scale.detach().float()
        low, high = sorted((float((qmin - zero_point) * s), float((qmax - zero_point) * s)))
        grad_x, grad = torch.empty_like(x), ops.laid_like(grad, x)
        inner, outside = [], []
        for source, result, g, out, a, b in _pieces(x, y, grad, grad_x):
            torch.ops.aten.hardtanh_backward.grad_input(g, source, low, high, grad_input=out)
            if learn:
                inner.append(_dot(g, result, a, b) - _dot(out, source if rounding else result, a, b))
            if shift:
                outside.append(g.sum(dtype=torch.float32) - out.sum(dtype=torch.float32))
        slope = (torch.stack(inner).sum() * gain / s).reshape(scale.shape) if learn else None
        moved = (-torch.stack(outside).sum() * gain * s).reshape(zero_point.shape) if shift else None
        return grad_x, slope, moved, *rest


def _by_row(
    x: Tensor, y: Tensor, grad: Tensor, scale: Tensor, limits: tuple[int, int], rounding: bool | None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of symmetric weights and of their scales ``[out]``, in a third of the passes over memory.

    ``rounding`` None leaves the scales out.
    """
    real = x * (1.0 / ops.expand(scale, x, 0))
    grad_x = torch.ops.aten.hardtanh_backward(grad, real, *limits)
    if rounding is None:
        return grad_x, None
    g, passed, value, other = (t.reshape(len(scale), -1) for t in (grad, grad_x, y, x if rounding else y))
    return grad_x, (_inner(g, value) - _inner(passed, other)) / scale


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar product of each row of ``a`` with that row of ``b``."""
    if a.shape[1] < _SHORT:
        return (a * b).sum(1)
    return torch.bmm(a[:, None, :], b[:, :, None]).flatten()


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield equal pieces of dense tensors of one shape and layout, and two float32 scratches of the piece's size."""
    size = max(tensors[0].numel(), 1)
    if tensors[0].device.type == "cpu":
        size = min(size, ops.CHUNK)
    short = tensors[0].dtype != torch.float32
    scratch = tensors[0].new_empty((2, size if short else 0), dtype=torch.float32)
    for parts in zip(*(torch.split(ops.flat(t), size) for t in tensors), strict=True):
        yield (*parts, *scratch[:, : parts[0].numel()])


def _dot(u: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return the scalar product in float32; ``a`` and ``b`` take the factors where they are shorter."""
    return torch.dot(u, v) if u.dtype == torch.float32 else torch.dot(a.copy_(u), b.copy_(v))
