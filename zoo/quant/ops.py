"""The four primitives. ``q = clamp(round_half_even(x / s) + z, qmin, qmax)``, ``x' = (q - z) s``."""

from __future__ import annotations

import torch
from torch import Tensor


def expand(value: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Return a per-tensor or per-channel value in a shape that broadcasts over ``like`` along ``axis``."""
    if axis is None or value.numel() == 1:
        return value.reshape([1] * like.dim())
    return value.reshape([-1 if i == axis else 1 for i in range(like.dim())])


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
    """Return the codes as integer-valued float32 (``scale``, ``zero_point``: one value, or one per channel of axis)."""
    s, z = expand(scale, x, axis), expand(zero_point, x, axis).to(x.dtype)
    return (torch.round(x * (1.0 / s)) + z).clamp_(qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """Return the real values of codes."""
    return (q - expand(zero_point, q, axis).to(q.dtype)) * expand(scale, q, axis)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    """Return ``dequantize(quantize(x))`` in one fused kernel, bit-equal to the two."""
    if axis is None or scale.numel() == 1:
        return torch.fake_quantize_per_tensor_affine(
            x, scale.detach().reshape(()), zero_point.reshape(()).to(torch.int32), qmin, qmax
        )
    return torch.fake_quantize_per_channel_affine(x, scale.detach(), zero_point.to(torch.int32), axis, qmin, qmax)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    if a.stride() == b.stride() and a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


class LearnedScale(torch.autograd.Function):
    """Fake quantization with the LSQ gradient of the scale (Esser et al. 2020, eq. 3), straight-through for x."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int,
        axis: int | None, gain: float,
    ) -> Tensor:  # fmt: skip
        y = fake_quantize(x, scale, zero_point, qmin, qmax, axis)
        ctx.save_for_backward(x, y, scale, zero_point)
        ctx.rest = (qmin, qmax, axis, gain)  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: D102
        x, y, scale, zero_point = ctx.saved_tensors
        qmin, qmax, axis, gain = ctx.rest
        s, z = expand(scale, x, axis), expand(zero_point, x, axis)
        inside = (x >= (qmin - 0.5 - z) * s).logical_and_(x <= (qmax + 0.5 - z) * s)
        grad_x = grad * inside
        if not ctx.needs_input_grad[1]:
            return grad_x, None, None, None, None, None, None
        # d y / d s = y / s - [inside] x / s, with y / s the clipped integer minus the zero point
        if axis is None or scale.numel() == 1:
            total = _dot(grad, y) - _dot(grad_x, x)
            grad_s = (total / scale.reshape(())).reshape(scale.shape)
        else:
            dims = [d for d in range(x.dim()) if d != axis]
            grad_s = (grad * y - grad_x * x).sum(dims) / scale
        return grad_x, grad_s * gain, None, None, None, None, None
