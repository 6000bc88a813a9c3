"""The whole range that was seen."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.quant.quantizer import Quantizer


@dataclass(frozen=True)
class Minmax:
    """Range = smallest and largest value."""

    def range(self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return ``(low, high)`` ``[C]`` for ``sample`` ``[C, n]``, whose exact extremes are ``low`` and ``high``."""
        return low, high
