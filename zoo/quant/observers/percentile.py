"""Cut a share of outliers off each end."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from zoo.quant.quantizer import Quantizer


@dataclass(frozen=True)
class Percentile:
    """From the ``100 - percentile``-th to the ``percentile``-th percentile (99.99 is the usual choice at 8 bit)."""

    percentile: float = 99.99

    def __post_init__(self) -> None:
        """Refuse a share outside (50, 100]."""
        if not 50 < self.percentile <= 100:
            raise ValueError(f"percentile must lie in (50, 100], got {self.percentile}")

    def range(self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return ``(low, high)`` ``[C]`` for values ``sample`` ``[C, n]``."""
        ordered = sample.sort(dim=1).values
        last = ordered.shape[1] - 1
        top = round(last * self.percentile / 100)
        return ordered[:, last - top], ordered[:, top]
