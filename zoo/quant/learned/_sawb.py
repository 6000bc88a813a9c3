"""Statistics-aware weight binning (Choi et al. 2019): the range follows from two moments of the weights."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.errors import QuantError
from zoo.quant.learned._range import learned_range
from zoo.quant.quantizer import Quantizer, RangeLearner, signed_scale

# (c1, c2) of ``alpha = c1 sqrt(E[w^2]) - c2 E|w|`` by bits
COEFFICIENTS = {2: (3.22824, 2.19780), 3: (7.57111, 6.96333), 4: (12.16637, 12.19222), 8: (34.97231, 40.26019)}


class Sawb(RangeLearner):
    """No parameter: the scale is ``alpha / 2^(b-1)``, taken anew from the weights (per channel where asked for)."""

    last: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        """Raise QuantError for a format that no coefficients are published for."""
        super().__init__()
        if quantizer.fmt.bits not in COEFFICIENTS or not quantizer.fmt.symmetric:
            raise QuantError(
                f"train: quantizer pact has coefficients for symmetric weights of {', '.join(map(str, COEFFICIENTS))} "
                f"bits, not for {quantizer.fmt.bits}; choose lsq"
            )
        self.register_buffer("last", quantizer.scale.detach().clone())

    @torch.no_grad()
    def _measure(self, weight: Tensor, quantizer: Quantizer) -> Tensor:
        rows = weight.flatten(1) if quantizer.axis == 0 else weight.reshape(1, -1)
        c1, c2 = COEFFICIENTS[quantizer.fmt.bits]
        alpha = c1 * rows.square().mean(1).sqrt() - c2 * rows.abs().mean(1)
        # a channel of few equal weights gives no positive alpha: then the largest weight is the range
        alpha = torch.where(alpha > 0, alpha, rows.abs().amax(1))
        scale = alpha / 2 ** (quantizer.fmt.bits - 1)
        scale = torch.where(scale > 1e-30, scale, self.last)
        self.last.copy_(scale)
        return scale

    def scale(self) -> Tensor:
        """Return the scale of the weight last seen."""
        return self.last

    def forward(self, x: Tensor, quantizer: Quantizer, sign: Tensor | None = None) -> Tensor:
        """Return the fake-quantized weight; gradients pass inside the range."""
        scale, axis = signed_scale(self._measure(x, quantizer), sign, quantizer.axis)
        return learned_range(x, scale, quantizer.zero_point, quantizer.qmin, quantizer.qmax, axis, 1.0, True)

    def settle(self, quantizer: Quantizer) -> None:
        """Write the last scale into the quantizer."""
        quantizer.set_qparams(self.last)
