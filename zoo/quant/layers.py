"""The fake-quantized vocabulary: each module owns the quantizer of its output tensor."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.graph import ops
from zoo.native.kernels import Kernels
from zoo.quant.ops import readable
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format


def _activate(x: Tensor, act: str | None) -> Tensor:
    if act == "relu":
        return F.relu(x)
    if act == "relu6":
        return F.relu6(x)
    return x


class QNode(nn.Module):
    """A node of a Q-graph. ``act`` is a fused ``relu`` or ``relu6``; ``out`` quantizes the result (None: unchanged)."""

    out: Quantizer

    def __init__(self, out: Quantizer, act: str | None = None) -> None:
        """Attach the output quantizer."""
        super().__init__()
        self.out, self.act = out, act
        # a semantics' rounding offset in real units, away from zero; only simulated networks have one
        self.nudge: Tensor | None = None
        # upper end of each channel [C] where a ReLU6 was rescaled; once calibrated, the quantizer's clamp lies below it
        self.cap: Tensor | None = None

    def _clamps(self) -> bool:
        """Tell whether the calibrated quantizer's clamp is the activation already: 0 below, at most 6 above."""
        if not readable(self.out.zero_point):
            return False  # a second clamp changes nothing
        zero = float(self.out.zero_point)
        if zero != self.out.qmin or self.act != "relu6":
            return zero == self.out.qmin
        scale = self.out.scale if self.out.learner is None else self.out.learner.scale()
        return float(scale.detach()) * (self.out.qmax - zero) <= 6.0

    def finish(self, y: Tensor) -> Tensor:
        """Apply the fused activation and the output quantizer."""
        if self.act and (not self.out.active or self.out.drop or not self._clamps()):
            y = _activate(y, self.act)
            if self.cap is not None and not self.out.active:
                y = torch.minimum(y, self.cap.reshape([1, -1] + [1] * (y.dim() - 2)))
        if self.nudge is not None:
            y = y + torch.sign(y) * self.nudge
        return self.out(y)  # type: ignore[no-any-return]


class QInput(QNode):
    """Quantizes the network's input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized image."""
        return self.finish(x)


class QRequantize(QNode):
    """A tensor in another format, for the layers that multiply it; its other readers take it as it is."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the tensor on the other grid."""
        return self.finish(x)


class QWeighted(QNode):
    """A layer with a weight: its latent float weight, bias, and weight quantizer (axis 0 = output channel).

    ``norm`` is the BatchNorm that follows it, while one is trained with it (``quantize: {batchnorm: merge}``).
    ``mask`` (as ``weight``, 1 or 0) keeps pruned weights at zero. ``standard_deviation`` [out], where set, is what
    every channel of the weight is normalised to, with mean zero, before it is quantized.
    """

    mask: Tensor | None
    standard_deviation: Tensor | None

    def __init__(self, layer: nn.Module, weight_format: Format, out: Quantizer, act: str | None = None) -> None:
        """Wrap a convolution or linear layer; the layer itself is not changed."""
        super().__init__(out, act)
        weight = layer.weight
        assert isinstance(weight, Tensor)
        bias = layer.bias if isinstance(layer.bias, Tensor) else weight.new_zeros(weight.shape[0])
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.weight_quantizer = Quantizer(weight_format, signed=weight_format.symmetric, channels=weight.shape[0])
        self.rounding: nn.Module | None = None
        self.norm: nn.BatchNorm1d | nn.BatchNorm2d | None = None
        self.register_buffer("mask", None)
        self.register_buffer("standard_deviation", None)

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return the layer's sum of products with this weight, plus its bias, before activation and quantizer."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's quantized output."""
        y = self.multiply(x, self.quantized_weight())
        if self.norm is None:
            return self.finish(y)
        if self.out.learner is not None and self.nudge is None and (self.act is None or self._clamps()):
            normed = self.out.learner.normed(y, self.norm, self.out)
            if normed is not None:
                return normed
        return self.finish(self.norm(y))

    def quantized_weight(self) -> Tensor:
        """Return the fake-quantized weight (through the learned rounding while one is being learned)."""
        if self.rounding is not None:
            return self.rounding(self.weight)  # type: ignore[no-any-return]
        return self.weight_quantizer(self.latent(), self.sign())  # type: ignore[no-any-return]

    def full(self) -> Tensor:
        """Return the float weight before its mask: normalised where the layer says so."""
        weight: Tensor = self.weight
        if self.standard_deviation is not None:
            shape = [-1] + [1] * (weight.dim() - 1)
            deviation, mean = torch.std_mean(weight.flatten(1), 1)
            gain = self.standard_deviation / deviation.clamp(min=1e-12)
            weight = (weight - mean.reshape(shape)) * gain.reshape(shape)
        return weight

    def latent(self) -> Tensor:
        """Return the float weight that is quantized: ``full`` and masked where the layer says so."""
        weight = self.full()
        # the gradient reaches masked weights too, so that they can come back while masks still change
        return weight if self.mask is None else weight + (weight * self.mask - weight).detach()

    @torch.no_grad()
    def sign(self) -> Tensor | None:
        """Return -1 [out] where BatchNorm's factor is negative, else 1; None where no channel is.

        The merged weight has the other sign there, and the codes' range need not be symmetric: the weight is quantized
        by the negated scale, so that the merge only has to negate codes that exist.
        """
        if self.norm is None or self.norm.weight is None:
            return None
        negative = self.norm.weight < 0
        if not readable(negative):
            return torch.where(negative, -1.0, 1.0)
        return torch.where(negative, -1.0, 1.0) if bool(negative.any()) else None


class QConv2d(QWeighted):
    """Convolution with static padding."""

    kernels: Kernels | None = None  # of a training that has some

    def __init__(self, layer: ops.Conv2d, weight_format: Format, out: Quantizer, act: str | None = None) -> None:
        """Take over stride, padding, dilation and groups."""
        super().__init__(layer, weight_format, out, act)
        self.stride, self.dilation, self.groups, self.pad = layer.stride, layer.dilation, layer.groups, layer.pad
        self.extra_pad, self.padding = layer.extra_pad, layer.padding

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``[N, out, H', W']``."""
        if self.extra_pad is not None:
            x = F.pad(x, self.extra_pad)
        return ops.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups, self.kernels)


class QLinear(QWeighted):
    """Fully connected layer on ``[N, in]``."""

    def multiply(self, x: Tensor, weight: Tensor) -> Tensor:
        """Return ``[N, out]``."""
        return ops.linear(x, weight, self.bias)


class QAdd(QNode):
    """Residual addition."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the quantized sum."""
        return self.finish(a + b)


class QMul(QNode):
    """Product with broadcasting (squeeze-excite)."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the quantized product."""
        return self.finish(a * b)


class QCat(QNode):
    """Concatenation over channels onto one scale."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the joined tensors."""
        return self.finish(torch.cat(tensors, 1))


class QMean(QNode):
    """Global average pool with a scale of its own."""

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, C, 1, 1]``."""
        return self.finish(x.mean((2, 3), keepdim=True))


class QAvgPool(QNode):
    """Average pool without padding, with a scale of its own."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int], out: Quantizer) -> None:
        """Take over window and stride."""
        super().__init__(out)
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """Return the pooled tensor."""
        return self.finish(F.avg_pool2d(x, self.kernel, self.stride))


class QTable(QNode):
    """An activation of a quantized tensor: at most 256 inputs, so a table on integers."""

    def __init__(self, function: str, out: Quantizer) -> None:
        """Take one of ``zoo.graph.ops.ACTIVATIONS``."""
        super().__init__(out)
        self.function = function
        self.module = ops.ACTIVATIONS[function]()

    def forward(self, x: Tensor) -> Tensor:
        """Return the activated tensor."""
        return self.finish(self.module(x))


PASSING = (nn.MaxPool2d, nn.Flatten, ops.Slice)
