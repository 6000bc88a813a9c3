"""The range that loses least: L_p search over shrunken ranges."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zoo.quant import ops
from zoo.quant.quantizer import Quantizer

_BLOCK = 8  # candidates between two looks at whether the rest can be any better


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
            groups = ((np.arange(self.points) + 0.5) * (sample.shape[1] / self.points)).astype(np.int64)
            sample = torch.from_numpy(np.sort(sample.numpy(), axis=1)[:, groups])
        best_low, best_high = self._search(sample, low, high, quantizer, True, True)
        if not quantizer.fmt.symmetric and bool((low < 0).any()) and bool((high > 0).any()):
            best_low, best_high = self._search(sample, best_low, best_high, quantizer, True, False)
            best_low, best_high = self._search(sample, best_low, best_high, quantizer, False, True)
        return best_low, best_high

    def _search(
        self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer, move_low: bool, move_high: bool
    ) -> tuple[Tensor, Tensor]:
        factor = torch.tensor([[1.0 - step / self.candidates] for step in range(self.candidates)], dtype=torch.float32)
        lows = low * factor if move_low else low.expand(self.candidates, -1)
        highs = high * factor if move_high else high.expand(self.candidates, -1)
        trial = Quantizer(quantizer.fmt, signed=quantizer.signed)
        trial.scale = torch.nn.Parameter(torch.ones(lows.numel(), dtype=torch.float32), requires_grad=False)
        trial.zero_point = torch.zeros(lows.numel(), dtype=torch.float32)
        trial.set_range(lows, highs)
        errors = torch.full_like(lows, float("inf"))
        scales, zeros = trial.scale.reshape_as(lows), trial.zero_point.reshape_as(lows)
        ends = [end.reshape_as(lows) for end in trial.range()]
        # as many candidates at once as stay in the caches
        at_once = min(_BLOCK, max(1, ops.CHUNK // sample.numel()))
        for tried in range(0, self.candidates, at_once):
            now = slice(tried, tried + at_once)
            rows = sample.repeat(len(scales[now]), 1)
            steps, zero = scales[now].flatten(), zeros[now].flatten()
            if trial.fmt.mid_rise:
                rows -= ops.half_step(steps, rows, 0)  # moves the levels with it: the error is the same
            made = ops.fake_quantize(rows, steps, zero, trial.qmin, trial.qmax, 0)
            errors[now] = self._mean(made.sub_(rows)).reshape_as(scales[now])
            last = min(tried + at_once, self.candidates) - 1
            if (last + 1) % _BLOCK == 0 and trial.fmt.scale == "float":
                # what a range cuts off, every smaller one cuts off too, but for the rounding of its zero point
                margin = scales[last][:, None]
                kept = torch.minimum(
                    torch.maximum(sample, ends[0][last][:, None] - margin), ends[1][last][:, None] + margin
                )
                if bool((self._mean(kept.sub_(sample)) > errors.amin(0) * 1.001).all()):
                    break
        best = errors.argmin(0, keepdim=True)
        return lows.gather(0, best)[0], highs.gather(0, best)[0]

    def _mean(self, difference: Tensor) -> Tensor:
        """Return the mean of ``|difference|^p`` of each row; the argument is overwritten."""
        difference.abs_()
        return (difference.square_() if self.p == 2 else difference.pow_(self.p)).mean(1)
