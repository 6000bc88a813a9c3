"""The four primitives. ``q = clamp(round_half_even(x / s) + z, qmin, qmax)``, ``x' = (q - z) s``.

Mid-rise levels are those of ``x - s / 2``, moved back by ``s / 2``.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 18  # elements: enough for both cores to share, few enough to stay in their caches


def readable(tensor: Tensor) -> bool:
    """Tell whether reading a value costs nothing: on a GPU the program would wait, and a compiler cannot."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling()


def expand(value: Tensor, like: Tensor, axis: int | None) -> Tensor:
    """Return a per-tensor or per-channel value in a shape that broadcasts over ``like`` along ``axis``."""
    if axis is None or value.numel() == 1:
        return value.reshape([1] * like.dim())
    return value.reshape([-1 if i == axis else 1 for i in range(like.dim())])


def half_step(scale: Tensor, like: Tensor, axis: int | None, gain: float = 1.0) -> Tensor:
    """Return ``s / 2`` in a shape that broadcasts over ``like``; its gradient is multiplied by ``gain``."""
    s = expand(scale, like, axis)
    return (s.detach() + (s - s.detach()) * gain) / 2


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
    """Return the codes as integer-valued float32 (``scale``, ``zero_point``: one value, or one per channel of axis)."""
    s, z = expand(scale, x, axis), expand(zero_point, x, axis).to(x.dtype)
    return (torch.round(x * (1.0 / s)) + z).clamp_(qmin, qmax)


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None = None) -> Tensor:
    """Return the real values of codes."""
    return (q - expand(zero_point, q, axis).to(q.dtype)) * expand(scale, q, axis)


@torch.no_grad()
def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    """Return ``dequantize(quantize(x))``, bit-equal to the two and several times as fast; no gradient."""
    if not readable(x):
        s, z = expand(scale, x, axis), expand(zero_point, x, axis)
        y = torch.round(x.float() * (1.0 / s))
        return (torch.minimum(torch.maximum(y, qmin - z), qmax - z) * s).to(x.dtype)
    if axis is not None and scale.numel() > 1:
        s, z = expand(scale, x, axis), expand(zero_point, x, axis).to(x.dtype)
        y = (x * (1.0 / s)).round_()
        if not bool(zero_point.any()):
            return y.clamp_(qmin, qmax).mul_(s)
        # not clamp: with tensors for its ends it takes several times as long as both together
        return torch.minimum(torch.maximum(y, qmin - z, out=y), qmax - z, out=y).mul_(s)
    inverse, step, low, high = _scalars(scale, zero_point, qmin, qmax)
    x = dense(x)
    y = torch.empty_like(x)
    for source, target, code in _chunks(x, y):
        torch.mul(source, inverse, out=code)
        torch.mul(code.round_().clamp_(low, high), step, out=target)
    return y


@torch.no_grad()
def grid_codes(x: Tensor, step: float) -> Tensor:
    """Return the centred codes of values that lie on a grid; no gradient."""
    x = dense(x)
    y = torch.empty_like(x)
    for source, target, _ in _chunks(x, y):
        torch.mul(source, 1.0 / step, out=target).round_()
    return y


def dense(x: Tensor) -> Tensor:
    """Return the tensor with no gaps in memory, in its own order where that is contiguous or channels_last."""
    return x if is_dense(x) else x.contiguous()


def is_dense(x: Tensor) -> bool:
    """Tell whether the tensor has no gaps in memory and is contiguous or channels_last."""
    return x.is_contiguous() or channels_last(x)


def channels_last(x: Tensor) -> bool:
    """Tell whether ``[N, C, H, W]`` lies in memory as N, H, W, C."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last)


def laid_like(grad: Tensor, x: Tensor) -> Tensor:
    """Return a gradient of a dense tensor in the memory order of that tensor."""
    return grad if grad.stride() == x.stride() else torch.empty_like(x).copy_(grad)


def flat(x: Tensor) -> Tensor:
    """Return a dense tensor as one row, in memory order."""
    return (x.permute(0, 2, 3, 1) if channels_last(x) else x).reshape(-1)


def _scalars(scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> tuple[float, float, float, float]:
    s, z = scale.detach().float(), float(zero_point)
    return float(1.0 / s), float(s), qmin - z, qmax - z


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield equal pieces of dense tensors of one shape and layout, and a float32 scratch of the piece's size."""
    size = CHUNK if tensors[0].device.type == "cpu" else max(tensors[0].numel(), 1)
    scratch = tensors[0].new_empty(min(size, tensors[0].numel()), dtype=torch.float32)
    for parts in zip(*(torch.split(flat(t), size) for t in tensors), strict=True):
        piece = scratch[: parts[0].numel()]
        yield (*parts, parts[-1] if parts[-1].dtype == torch.float32 and len(parts) == 2 else piece)


class LearnedScale(torch.autograd.Function):
    """Fake quantization with the LSQ gradient of the scale (Esser et al. 2020, eq. 3), straight-through for x."""

    @staticmethod
    def forward(  # noqa: D102
        ctx: torch.autograd.function.FunctionCtx, x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int,
        axis: int | None, gain: float,
    ) -> Tensor:  # fmt: skip
        x = dense(x)
        ctx.save_for_backward(x, scale, zero_point)
        ctx.rest = (qmin, qmax, axis, gain)  # type: ignore[attr-defined]
        return fake_quantize(x, scale, zero_point, qmin, qmax, axis)

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]  # noqa: D102
        x, scale, zero_point = ctx.saved_tensors
        qmin, qmax, axis, gain = ctx.rest
        # d y / d s = clipped integer - [inside] x / s
        if axis is not None and scale.numel() > 1:
            s, z = expand(scale, x, axis), expand(zero_point, x, axis).to(x.dtype)
            real = x / s
            inside = (real > qmin - z).logical_and_(real < qmax - z)
            grad_x = grad * inside
            dims = [d for d in range(x.dim()) if d != axis]
            code = torch.clamp(torch.round(real), qmin - z, qmax - z)
            grad_s = (grad * code - grad_x * real).sum(dims)
            return grad_x, grad_s * gain, None, None, None, None, None
        inverse, _, low, high = _scalars(scale, zero_point, qmin, qmax)
        grad_x, grad = torch.empty_like(x), laid_like(grad, x)
        learn = ctx.needs_input_grad[1]
        sums = []
        for source, g, out, real in _chunks(x, grad, grad_x):
            torch.mul(source, inverse, out=real)
            g32 = g.float()
            passed = torch.ops.aten.hardtanh_backward(g32, real, low, high)
            out.copy_(passed)
            if learn:
                inside = torch.dot(passed, real)
                sums.append(torch.dot(g32, real.round_().clamp_(low, high)) - inside)
        grad_s = torch.stack(sums).sum().reshape(scale.shape) * gain if learn else None
        return grad_x, grad_s, None, None, None, None, None
