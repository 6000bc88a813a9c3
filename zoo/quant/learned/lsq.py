"""Learned step size quantization (Esser et al. 2020)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.quant.learned._learner import Learner
from zoo.quant.quantizer import Quantizer


class Lsq(Learner):
    """The scale is learned: gradient of eq. 3, times ``g = 1 / sqrt(N qmax)`` (section 2.2)."""

    def __init__(self, quantizer: Quantizer, *, weight: bool, relative: bool) -> None:
        """Start from the calibrated scale, not from the paper's ``2 mean|v| / sqrt(qmax)``."""
        super().__init__(quantizer.scale, torch.ones_like(quantizer.scale), relative)

    def gain(self, x: Tensor, quantizer: Quantizer) -> float:
        """Return g."""
        return quantizer.lsq_gain(x)
