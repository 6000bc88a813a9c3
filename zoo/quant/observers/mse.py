"""The range that loses least: L_p search over shrunken ranges."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from zoo.quant.quantizer import Quantizer


@dataclass(frozen=True)
class Mse:
    """Shrink the full range in ``candidates`` equal steps and keep the step of least mean ``|x - x'|^p``.

    Symmetric formats search one factor, affine ones then refine each end on its own. ``p`` = 2.4 and 80 candidates
    are the settings of BRECQ (Li et al. 2021). Of a longer sample, ``points`` of its order statistics stand for all.
    """

    p: float = 2.4
    candidates: int = 80
    points: int = 8192

    def __post_init__(self) -> None:
        """Refuse a search that cannot find anything."""
        if self.candidates < 2 or self.points < 256 or self.p <= 0:
            raise ValueError("candidates must be at least 2, points at least 256 and p positive")

    def range(self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return ``(low, high)`` ``[C]`` for ``sample`` ``[C, n]``, whose exact extremes are ``low`` and ``high``."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        if sample.shape[1] > 2 * self.points:
            # the middle one of each of so many equal groups: an end taken whole would weigh as much as its group
            groups = torch.arange(self.points, dtype=torch.float64) + 0.5
            sample = sample.sort(dim=1).values[:, (groups * (sample.shape[1] / self.points)).long()]
        best_low, best_high = self._search(sample, low, high, quantizer, True, True)
        if not quantizer.fmt.symmetric and bool((low < 0).any()) and bool((high > 0).any()):
            best_low, best_high = self._search(sample, best_low, best_high, quantizer, True, False)
            best_low, best_high = self._search(sample, best_low, best_high, quantizer, False, True)
        return best_low, best_high

    def _search(
        self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer, move_low: bool, move_high: bool
    ) -> tuple[Tensor, Tensor]:
        best = torch.full_like(low, float("inf"))
        best_low, best_high = low.clone(), high.clone()
        for step in range(self.candidates):
            factor = 1.0 - step / self.candidates
            lo, hi = (low * factor if move_low else low), (high * factor if move_high else high)
            error = self._error(sample, lo, hi, quantizer)
            better = error < best
            best = torch.where(better, error, best)
            best_low, best_high = torch.where(better, lo, best_low), torch.where(better, hi, best_high)
        return best_low, best_high

    def _error(self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> Tensor:
        trial = Quantizer(quantizer.fmt, signed=quantizer.signed, channels=sample.shape[0])
        trial.axis = 0
        trial.scale = torch.nn.Parameter(torch.ones(sample.shape[0]), requires_grad=False)
        trial.zero_point = torch.zeros(sample.shape[0])
        trial.set_range(low, high)
        difference = (trial(sample) - sample).abs_()
        error: Tensor = (difference.square_() if self.p == 2 else difference.pow_(self.p)).mean(1)
        return error
