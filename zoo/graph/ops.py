"""The closed vocabulary of a float graph, beside torch's own Conv2d, Linear, BatchNorm, MaxPool2d and activations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.graph import bfloat16
from zoo.native import depthwise
from zoo.native.kernels import Kernels

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardswish": nn.Hardswish,
    "hardsigmoid": nn.Hardsigmoid,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
}
NONNEGATIVE = ("relu", "relu6", "hardsigmoid", "sigmoid")


def activation_name(module: nn.Module) -> str | None:
    """Return the vocabulary's name of an activation module, or None for any other module."""
    return next((name for name, kind in ACTIVATIONS.items() if type(module) is kind), None)


def default_settings(module: nn.Module) -> bool:
    """Tell whether an activation module has its type's own slope, alpha or approximation, as tables assume."""
    plain = type(module)()
    names = [name for name in getattr(plain, "__constants__", ()) if name != "inplace"]
    return all(getattr(module, name) == getattr(plain, name) for name in names)


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: Any,
    dilation: tuple[int, ...], groups: int, kernels: Kernels | None = None,
) -> Tensor:  # fmt: skip
    """Return ``F.conv2d``; under bfloat16 autocast on a CPU some are summed in float32 and rounded.

    Those are the grouped ones that are strided or wider than their input: oneDNN has no fast bfloat16 kernel for their
    gradient, which takes many times as long as in float32. Their operands are not rounded, and ``kernels``, where there
    are some, compute the depthwise ones. On a processor without bfloat16 (`zoo.graph.bfloat16`) it is all the others
    too, whose operands are rounded as oneDNN rounds them.
    """

    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding, dilation, groups)

    slow = groups > 1 and (max(stride) > 1 or min(x.shape[2:]) < max(weight.shape[2:]))
    if slow and bfloat16.asked(x):
        if kernels is not None and depthwise.suits(x, weight, stride, padding, dilation):
            return depthwise.depthwise(kernels, x.to(torch.bfloat16), weight, bias, stride[0], padding)
        return bfloat16.summed_in_float32(multiply, x, weight, bias)
    return bfloat16.product(multiply, x, weight, bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``F.linear``; under bfloat16 autocast on a CPU without bfloat16 by sums in float32 (see ``conv2d``)."""
    return bfloat16.product(F.linear, x, weight, bias)


class Conv2d(nn.Conv2d):
    """A convolution with static zero padding ``pad = (left, right, top, bottom)``, uneven where SAME asks for it."""

    kernels: Kernels | None = None  # of a training that has some

    def __init__(
        self, channels_in: int, channels_out: int, kernel: tuple[int, int], *, stride: tuple[int, int] = (1, 1),
        pad: tuple[int, int, int, int] = (0, 0, 0, 0), dilation: tuple[int, int] = (1, 1), groups: int = 1,
        bias: bool = True,
    ) -> None:  # fmt: skip
        """Make a convolution of ``[N, channels_in, H, W]``."""
        left, right, top, bottom = pad
        even = left == right and top == bottom
        super().__init__(
            channels_in, channels_out, kernel, stride=stride, padding=(top, left) if even else 0, dilation=dilation,
            groups=groups, bias=bias,
        )  # fmt: skip
        self.pad = pad
        self.extra_pad = None if even else pad

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, channels_out, H', W']``."""
        if self.extra_pad is not None:
            x = F.pad(x, self.extra_pad)
        return conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.kernels)

    @classmethod
    def of(cls, conv: nn.Conv2d, pad: tuple[int, int, int, int]) -> Conv2d:
        """Return the same convolution with this padding; weight and bias are shared, not copied."""
        new = cls(
            conv.in_channels, conv.out_channels, (conv.kernel_size[0], conv.kernel_size[1]),
            stride=(conv.stride[0], conv.stride[1]), pad=pad, dilation=(conv.dilation[0], conv.dilation[1]),
            groups=conv.groups, bias=conv.bias is not None,
        )  # fmt: skip
        new.weight, new.bias = conv.weight, conv.bias
        return new


class Linear(nn.Linear):
    """A fully connected layer on ``[N, in]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, out]``."""
        return linear(x, self.weight, self.bias)

    @classmethod
    def of(cls, layer: nn.Linear) -> Linear:
        """Return the same layer; weight and bias are shared, not copied."""
        # on no device, so that no random number is drawn for weights that are replaced
        new = cls(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        new.weight, new.bias = layer.weight, layer.bias
        return new


class Add(nn.Module):
    """Elementwise sum."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a + b``."""
        return a + b


class Mul(nn.Module):
    """Elementwise product with broadcasting, as in squeeze-excite."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return ``a * b``."""
        return a * b


class Cat(nn.Module):
    """Concatenation over channels."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the tensors joined along dimension 1."""
        return torch.cat(tensors, 1)


class Slice(nn.Module):
    """The channels from ``start`` to before ``stop``."""

    def __init__(self, start: int, stop: int) -> None:
        """Take the range."""
        super().__init__()
        self.start, self.stop = start, stop

    def extra_repr(self) -> str:
        """Return the range."""
        return f"{self.start}, {self.stop}"

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x[:, start:stop]``."""
        return x[:, self.start : self.stop]


class GlobalMean(nn.Module):
    """Mean over height and width: ``[N, C, H, W]`` -> ``[N, C, 1, 1]``."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean, both dimensions kept."""
        return x.mean((2, 3), keepdim=True)
