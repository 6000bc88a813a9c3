"""What the learned quantizers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.quant.learned._native import NativeNormed
from zoo.quant.learned._normed import NormedRange, fits
from zoo.quant.learned._range import learned_range
from zoo.quant.quantizer import Quantizer, RangeLearner, signed_scale

_LEAST = 1e-3  # of the range at the start


class Learner(RangeLearner):
    """Holds the range of one quantizer as a parameter ``value`` times a constant ``unit``, and quantizes with it.

    In relative units the parameter starts at 1, so that an optimizer whose steps have a fixed size (Adam) moves every
    range by the same share; otherwise it has the unit of the publication.
    """

    unit: Tensor
    floor: Tensor

    @classmethod
    def make(cls, quantizer: Quantizer, *, weight: bool, relative: bool) -> RangeLearner:
        """Return the learner of a weight's or of an activation's quantizer."""
        return cls(quantizer, weight=weight, relative=relative)  # type: ignore[call-arg,arg-type]

    def __init__(self, scale: Tensor, unit: Tensor, relative: bool) -> None:
        """Start from a calibrated scale; in absolute terms ``value`` is ``scale / unit``."""
        super().__init__()
        self.register_buffer("unit", scale.detach().clone() if relative else unit.detach().expand_as(scale).clone())
        self.value = nn.Parameter(scale.detach() / self.unit)
        self.register_buffer("floor", self.value.detach() * _LEAST)

    def scale(self) -> Tensor:
        """Return the scale [1] or [channels], differentiable."""
        return self.value * self.unit

    def zero_point(self, quantizer: Quantizer) -> Tensor:
        """Return the zero point, an integer; differentiable where it is learned."""
        return quantizer.zero_point

    def gain(self, x: Tensor, quantizer: Quantizer) -> float:
        """Return what the gradient of the scale is multiplied by."""
        return 1.0

    rounding = True  # whether the rounding error inside the range drives the scale too

    def forward(self, x: Tensor, quantizer: Quantizer, sign: Tensor | None = None) -> Tensor:
        """Return the fake-quantized tensor; ``sign`` [channels] multiplies the scale."""
        scale, axis = signed_scale(self.scale(), sign, quantizer.axis)
        zero = self.zero_point(quantizer)
        return learned_range(
            x, scale, zero, quantizer.qmin, quantizer.qmax, axis, self.gain(x, quantizer), self.rounding, self.kernels,
            quantizer.fmt.mid_rise,
        )  # fmt: skip

    def normed(self, u: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d, quantizer: Quantizer) -> Tensor | None:
        """Return ``self(norm(u))`` in one operation; None where there is none for it."""
        if not torch.is_grad_enabled() or not fits(u, norm):
            return None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        parts = (
            u, norm.weight, norm.bias, (norm.running_mean, norm.running_var), norm.momentum, norm.eps, self.scale(),
            self.zero_point(quantizer), quantizer.qmin, quantizer.qmax, self.gain(u, quantizer), self.rounding,
        )  # fmt: skip
        native = self.kernels is not None and self.kernels.suit(u, norm.weight, norm.bias)
        y: Tensor = NativeNormed.apply(self.kernels, *parts) if native else NormedRange.apply(*parts)
        return y

    @torch.no_grad()
    def limit(self) -> None:
        """Keep the range positive; called after each step of the optimizer."""
        torch.maximum(self.value, self.floor, out=self.value)

    @torch.no_grad()
    def settle(self, quantizer: Quantizer) -> None:
        """Write what was learned into the quantizer."""
        quantizer.set_qparams(self.scale(), self.zero_point(quantizer))
