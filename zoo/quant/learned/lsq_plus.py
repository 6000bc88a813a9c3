"""LSQ+ (Bhalgat et al. 2020): a learned offset beside the learned scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from zoo.quant.learned.lsq import Lsq
from zoo.quant.quantizer import Quantizer


class LsqPlus(Lsq):
    """As LSQ, and for affine formats the offset ``beta`` is learned (eq. 5-7).

    Integer arithmetic needs an exact zero, so the offset in use is the nearest multiple of the scale:
    ``z = round(-beta / s)``, with a straight-through gradient, at the ends of the codes too: there a range moves back
    into them. Weights and tensors behind a ReLU have no offset.
    """

    offset_unit: Tensor

    def __init__(self, quantizer: Quantizer, *, weight: bool, relative: bool) -> None:
        """Start from the calibrated scale and zero point."""
        super().__init__(quantizer, weight=weight, relative=relative)
        free = not weight and not quantizer.fmt.symmetric
        # in relative units a step of the optimizer is a share of the range, as that of the scale
        span = quantizer.qmax - quantizer.qmin if relative else 1
        self.register_buffer("offset_unit", self.unit * span)
        offset = -quantizer.zero_point * quantizer.scale.detach() / self.offset_unit
        self.offset = nn.Parameter(offset) if free else None
        self.codes = quantizer.qmin, quantizer.qmax

    def zero_point(self, quantizer: Quantizer) -> Tensor:
        """Return ``round(-beta / s)`` within the codes."""
        if self.offset is None:
            return quantizer.zero_point
        real = -self.offset * self.offset_unit / self.scale()
        # the difference is exactly zero: the value is an integer, the gradient passes
        return torch.round(real.detach().clamp(*self.codes)) + (real - real.detach())

    @torch.no_grad()
    def limit(self) -> None:
        """Keep the range positive and the offset within the codes, where it is one step from an effect."""
        super().limit()
        if self.offset is not None:
            step = self.scale() / self.offset_unit
            self.offset.clamp_(-self.codes[1] * step, -self.codes[0] * step)
