"""Trained quantization thresholds (Jain et al. 2020) with normalised gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo import ranks
from zoo.quant.learned._learner import Learner
from zoo.quant.quantizer import Quantizer

_BETA, _EPS = 0.9, 1e-5


class Tqt(Learner):
    """``log2 t`` of the upper clipping value t is learned.

    ``dy / dlog2 t = ln 2 (y - x)`` inside the range, ``ln 2`` times the clipped value outside (eq. 7-8). Each gradient
    is divided by the root of its running mean square and goes through tanh (appendix B.2), so one rate fits all layers.
    A power-of-two format takes ``s = 2^ceil(log2 t - log2 qmax)``, the least that reaches t (the publication has
    ``2^(bits - 1)`` in place of qmax, and its largest code may lie below t); a float one takes t as it is.
    """

    any_scale = True
    square: Tensor
    count: Tensor
    reach: Tensor

    def __init__(self, quantizer: Quantizer, *, weight: bool, relative: bool) -> None:
        """Start from the calibrated range; ``relative`` changes nothing, a logarithm is relative."""
        super().__init__(quantizer.scale, torch.ones_like(quantizer.scale), False)
        reach = torch.clamp(quantizer.qmax - quantizer.zero_point + quantizer.fmt.offset, min=1).expand_as(
            quantizer.scale
        )
        self.register_buffer("reach", torch.log2(reach))
        self.value = nn.Parameter(torch.log2(quantizer.scale.detach()) + self.reach)
        self.register_buffer("square", torch.zeros_like(self.value))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.power_of_two = quantizer.fmt.scale == "pow2"
        self.value.register_hook(self._normalise)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _normalise(self, grad: Tensor) -> Tensor:
        # that of the whole batch: several processes are to keep one mean square
        grad = ranks.mean(grad)
        self.square.mul_(_BETA).add_(grad.square(), alpha=1 - _BETA)
        self.count += 1
        mean = self.square / (1 - _BETA**self.count)
        return torch.tanh(grad / (mean.sqrt() + _EPS))

    def scale(self) -> Tensor:
        """Return the scale, differentiable in log2 t."""
        exponent = self.value - self.reach
        if self.power_of_two:
            exponent = torch.ceil(exponent.detach() - 1e-6) + (exponent - exponent.detach())
        return torch.exp2(exponent)

    def limit(self) -> None:
        """A logarithm may have any sign."""
