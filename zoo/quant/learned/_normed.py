"""BatchNorm in training, ReLU and learned range as one operation; it keeps no more than BatchNorm and ReLU do."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import ranks
from zoo.quant import ops


def fits(u: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> bool:
    """Tell whether ``NormedRange`` can stand for this BatchNorm: in training, with all its parts, on one CPU."""
    whole = norm.affine and norm.track_running_stats and norm.momentum is not None
    alone, several = ranks.count() == 1, u.numel() > u.shape[1]
    rows = u.is_contiguous() if u.dim() == 2 else ops.channels_last(u)
    return norm.training and whole and alone and several and rows and ops.readable(u)


class NormedRange(torch.autograd.Function):
    """``y`` of ``LearnedRange`` for ``x = BatchNorm(u)``; ``u`` is ``[N, C]`` or channels_last ``[N, C, H, W]``.

    The normalised tensor is quantized in place and computed again in the backward pass, piece by piece.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, u: Tensor, gamma: Tensor, beta: Tensor,
        running: tuple[Tensor, Tensor], momentum: float, eps: float, scale: Tensor, zero_point: Tensor, qmin: int,
        qmax: int, gain: float, rounding: bool,
    ) -> Tensor:  # fmt: skip
        s = scale.detach().float()
        # in units of the scale, so that only rounding, clamping and one product are left
        y, mean, deviation = torch.native_batch_norm(u, gamma / s, beta / s, *running, True, momentum, eps)
        step, zero = float(s), float(zero_point)
        short = y.dtype != torch.float32
        piece = torch.empty(ops.CHUNK if short else 0)
        for target in torch.split(ops.flat(y), ops.CHUNK):
            code = piece[: target.numel()].copy_(target) if short else target
            code.round_().clamp_(qmin - zero, qmax - zero).mul_(step)
            if short:
                target.copy_(code)
        ctx.save_for_backward(u, y, gamma, beta, mean, deviation, scale, zero_point)
        ctx.rest = (eps, qmin, qmax, gain, rounding)  # type: ignore[attr-defined]
        return y

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        u, y, gamma, beta, mean, deviation, scale, zero_point = ctx.saved_tensors
        eps, qmin, qmax, gain, rounding = ctx.rest
        factor = (gamma * deviation).float()
        shift = (beta - mean * factor).float()
        s = scale.detach().float()
        low, high = float((qmin - zero_point) * s), float((qmax - zero_point) * s)
        grad_x, grad = torch.empty_like(u), ops.laid_like(grad, u)
        learn, moves = ctx.needs_input_grad[6], ctx.needs_input_grad[7]
        width = len(factor)
        rows = max(1, ops.CHUNK // width) * width
        short = u.dtype != torch.float32
        scratch = torch.empty(4 if short else 1, min(rows, u.numel()), dtype=torch.float32)
        inner, outside = [], []
        for source, result, g, out in zip(*(torch.split(ops.flat(t), rows) for t in (u, y, grad, grad_x)), strict=True):
            x, *more = scratch[:, : source.numel()]
            # shorter floats are widened piece by piece, so that sums over millions of elements keep their digits
            wide = x.copy_(source) if short else source
            torch.addcmul(shift, wide.view(-1, width), factor, out=x.view(-1, width))
            g32, y32, passed = (more[0].copy_(g), more[1], more[2]) if short else (g, result, out)
            torch.ops.aten.hardtanh_backward.grad_input(g32, x, low, high, grad_input=passed)
            if short and learn:
                y32.copy_(result)
            if learn:
                inner.append(torch.dot(g32, y32) if rounding else torch.dot(g32, y32) - torch.dot(passed, y32))
            if moves:
                outside.append(g32.sum())
            if passed is not out:
                out.copy_(passed)
        grads = torch.ops.aten.native_batch_norm_backward(
            grad_x, u, gamma, None, None, mean, deviation, True, eps, [True, True, True]
        )
        # sums over what passed: BatchNorm's own gradients hold them, x being gamma times the normalised u plus beta
        through = torch.dot(gamma.float(), grads[1].float()) + torch.dot(beta.float(), grads[2].float())
        slope = None
        if learn:
            total = torch.stack(inner).sum() - (through if rounding else 0.0)
            slope = (total * gain / s).reshape(scale.shape)
        moved = ((grads[2].sum() - torch.stack(outside).sum()) * gain * s).reshape(zero_point.shape) if moves else None
        return *grads, None, None, None, slope, moved, None, None, None, None
