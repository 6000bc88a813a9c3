"""Oscillation dampening (Nagel et al. 2022, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zoo.train.layers import low_bit, weight_limits
from zoo.train.schedule import rise


@dataclass(frozen=True)
class Dampen:
    """Pulls latent weights to the middle of their bins: ``weight`` times the squared distance, rising on half a cosine.

    The distance of a layer is summed over output channels and averaged within them; layers of at most 4 bits count.
    It sets in after the share ``start`` of all steps.
    """

    weight: float = 0.1
    start: float = 0.25

    def __post_init__(self) -> None:
        """Refuse a schedule outside the training."""
        if self.weight <= 0 or not 0 <= self.start < 1:
            raise ValueError("weight must be positive and start in [0, 1)")

    def penalty(self, net: fx.GraphModule, step: int, total: int) -> Tensor | None:
        """Return the term of the loss (eq. 8): ``(q(w) - clip(w))^2`` with q(w) and the limits held fixed."""
        now = rise(step, total, self.start, 0.0, self.weight)
        if now <= 0 or step < self.start * total:
            return None
        terms = []
        for layer in low_bit(net):
            low, high = weight_limits(layer)
            latent = layer.latent()
            with torch.no_grad():
                middle = layer.quantized_weight()
            terms.append((middle - latent.clamp(low, high)).square().flatten(1).mean(1).sum())
        return now * torch.stack(terms).sum() if terms else None
