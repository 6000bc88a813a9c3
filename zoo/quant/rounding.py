"""Rounding as something that is learned: AdaRound's relaxation of up or down."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STRETCH_LOW, STRETCH_HIGH = -0.1, 1.1  # zeta and gamma of Nagel et al. 2020, eq. 23
WARM = 0.2  # share of the iterations before the regularizer sets in


class LearnedRounding(nn.Module):
    """``W' = s (clamp(floor(W / s) + h(V) + z, qmin, qmax) - z)`` (Nagel et al. 2020, eq. 22, 23).

    ``scale`` and ``zero_point`` broadcast over ``weight``. It starts at ``h(V) = W / s - floor(W / s)``.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> None:
        """Make one for a weight."""
        super().__init__()
        self.qmin, self.qmax = qmin, qmax
        real = weight.detach() / scale
        low = torch.floor(real)
        self.register_buffer("scale", scale.detach().clone())
        self.register_buffer("zero_point", zero_point.detach().clone())
        self.register_buffer("low", low)
        share = ((real - low).clamp(1e-4, 1 - 1e-4) - STRETCH_LOW) / (STRETCH_HIGH - STRETCH_LOW)
        self.logits = nn.Parameter(torch.log(share / (1 - share)))

    scale: Tensor
    zero_point: Tensor
    low: Tensor

    def soft(self) -> Tensor:
        """Return h(V), the rectified sigmoid, in [0, 1]."""
        return (torch.sigmoid(self.logits) * (STRETCH_HIGH - STRETCH_LOW) + STRETCH_LOW).clamp(0, 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the softly rounded weight; ``weight`` itself plays no part any more."""
        codes = (self.low + self.soft() + self.zero_point).clamp(self.qmin, self.qmax)
        return (codes - self.zero_point) * self.scale

    def codes(self) -> Tensor:
        """Return the integer codes, zero point included, each rounded to its nearer side."""
        up = (self.logits.detach() >= 0).to(self.low.dtype)
        return (self.low + up + self.zero_point).clamp(self.qmin, self.qmax)


def rounding_loss(soft: Tensor, power: float) -> Tensor:
    """Return the sum of ``1 - |2 h - 1|^beta`` (Nagel et al. 2020, eq. 24), least where every h is 0 or 1."""
    return (1.0 - (2.0 * soft - 1.0).abs().pow(power)).sum()


def beta(step: int, total: int) -> float | None:
    """Return the exponent, annealed from 20 to 2 after a warm-up that has none."""
    done = (step / total - WARM) / (1.0 - WARM)
    return None if done < 0 else 2.0 + 18.0 * (1.0 - done)
