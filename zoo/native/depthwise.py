"""A depthwise convolution by the compiled kernels, as an operation that PyTorch differentiates."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from zoo.native.kernels import Kernels

_KERNELS = (3, 5)


def suits(x: Tensor, weight: Tensor, stride: tuple[int, ...], padding: object, dilation: tuple[int, ...]) -> bool:
    """Tell whether ``depthwise`` computes the convolution of ``x`` [N, C, H, W] by ``weight`` with groups."""
    channels, one, *kernel = weight.shape
    if not isinstance(padding, tuple) or (channels, one) != (x.shape[1], 1) or kernel[0] not in _KERNELS:
        return False
    room = all(0 <= p < k <= size + 2 * p for p, k, size in zip(padding, kernel, x.shape[2:], strict=True))
    return kernel[0] == kernel[1] and stride[0] == stride[1] and set(dilation) == {1} and room and x.numel() > 0


def depthwise(
    kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]
) -> Tensor:
    """Return the convolution, where ``suits``, in the type of ``x``; weight and bias are float32, as are all sums."""
    y: Tensor = _Depthwise.apply(
        kernels, x.contiguous(memory_format=torch.channels_last), weight.float().contiguous(),
        None if bias is None else bias.float().contiguous(), stride, padding,
    )  # fmt: skip
    return y


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, kernels: Kernels, x: Tensor, weight: Tensor, bias: Tensor | None,
        stride: int, padding: tuple[int, int],
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        ctx.rest = (kernels, stride, padding)  # type: ignore[attr-defined]
        return kernels.depthwise_forward(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        kernels, stride, padding = ctx.rest
        grads = kernels.depthwise_backward(
            x, grad.contiguous(memory_format=torch.channels_last), weight, stride, padding
        )
        needed = ctx.needs_input_grad[1:4]
        return None, *(g if need else None for g, need in zip(grads, needed, strict=True)), None, None
