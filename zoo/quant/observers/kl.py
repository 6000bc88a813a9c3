"""Entropy calibration: the clip that keeps the distribution closest in Kullback-Leibler divergence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.quant.quantizer import Quantizer


@dataclass(frozen=True)
class Kl:
    """For each clip, fold the tail into the last bin, re-quantize the histogram to the format's levels, take least KL.

    Migacz 2017, "8-bit inference with TensorRT": 2048 bins, 128 levels for int8. The zeros that a ReLU leaves are exact
    under every clip, so they do not count: their bin gets what its neighbour has. Only sensible at 8 bit.
    """

    bins: int = 2048

    def __post_init__(self) -> None:
        """Refuse a histogram coarser than an 8-bit format."""
        if self.bins < 512:
            raise ValueError(f"bins must be at least 512, got {self.bins}")

    def range(self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return ``(low, high)`` ``[C]`` for values ``sample`` ``[C, n]``; a one-sided tensor keeps its zero end."""
        clips = torch.stack([self._clip(row.abs(), quantizer) for row in sample])
        return torch.maximum(low, -clips).clamp(max=0), torch.minimum(high, clips).clamp(min=0)

    def _clip(self, values: Tensor, quantizer: Quantizer) -> Tensor:
        top = values.max()
        if top <= 0:
            return top
        # of an affine format half the codes lie on either side of zero
        one_sided = quantizer.signed or quantizer.fmt.symmetric
        levels = min(max(quantizer.qmax, 2) + 1 if one_sided else (quantizer.qmax + 1) // 2, self.bins // 2)
        histogram = torch.histc(values, self.bins, 0.0, float(top)).double()
        histogram[0] = histogram[1]
        best, clip = float("inf"), self.bins
        for kept in range(levels, self.bins + 1, max(levels // 16, 1)):
            reference = histogram[:kept].clone()
            reference[-1] += histogram[kept:].sum()
            group = (torch.arange(kept) * levels // kept).clamp(max=levels - 1)
            used = (histogram[:kept] > 0).double()
            mass = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, histogram[:kept])
            filled = torch.zeros(levels, dtype=torch.float64).index_add_(0, group, used)
            spread = (mass / filled.clamp(min=1))[group] * used
            p, q = reference / reference.sum(), (spread + 1e-9) / (spread + 1e-9).sum()
            divergence = float(torch.where(p > 0, p * (p.clamp(min=1e-30) / q).log(), torch.zeros_like(p)).sum())
            if divergence < best:
                best, clip = divergence, kept
        return top * (clip / self.bins)
