"""PACT activations (Choi et al. 2018) with SAWB weights (Choi et al. 2019)."""

from __future__ import annotations

import torch
from torch import Tensor

from zoo.quant.learned._learner import Learner
from zoo.quant.learned._sawb import Sawb
from zoo.quant.quantizer import Quantizer, RangeLearner


class Pact(Learner):
    """The clipping value ``alpha`` (largest code times scale) is learned; its gradient is 1 where x is clipped.

    Eq. 2-3, with the paper's L2 penalty on alpha. A tensor with negative values keeps its calibrated zero point, and
    the lower end moves with alpha. Weights: see ``Sawb``.
    """

    rounding = False
    freezes = False
    decay = 1e-3

    @classmethod
    def make(cls, quantizer: Quantizer, *, weight: bool, relative: bool) -> RangeLearner:
        """Return SAWB for a weight."""
        return Sawb(quantizer) if weight else cls(quantizer, weight=False, relative=relative)

    def __init__(self, quantizer: Quantizer, *, weight: bool, relative: bool) -> None:
        """Start from the calibrated range."""
        reach: Tensor = torch.clamp(quantizer.qmax - quantizer.zero_point, min=1)
        super().__init__(quantizer.scale, 1.0 / reach, relative)
