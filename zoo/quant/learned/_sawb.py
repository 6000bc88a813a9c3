"""Statistics-aware weight binning (Choi et al. 2019): the range follows from two moments of the weights."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from zoo.errors import QuantError
from zoo.quant.learned._range import learned_range
from zoo.quant.quantizer import Quantizer, RangeLearner, signed_scale

_MOST_BITS = 4  # of the publication; with finer steps two moments say too little, and nothing need be cut off
_TRIED = 256
_ROOM = 1 + 1e-6  # beyond the largest weight: one at the very end of the range has no gradient


class Sawb(RangeLearner):
    """No parameter: the scale is taken anew from the weights, per channel where asked for; see ``coefficients``."""

    last: Tensor

    def __init__(self, quantizer: Quantizer) -> None:
        """Raise QuantError for an affine format: the fit is that of a symmetric one."""
        super().__init__()
        if not quantizer.fmt.symmetric:
            raise QuantError("train: quantizer pact takes the range of weights from their moments, which suits a "
                             "symmetric format only; set weight.symmetric or choose lsq")  # fmt: skip
        self.register_buffer("last", quantizer.scale.detach().clone())
        self.coefficients = coefficients(quantizer.qmin, quantizer.qmax, quantizer.fmt.offset)

    @torch.no_grad()
    def measure(self, x: Tensor, quantizer: Quantizer) -> None:
        """Keep the scale of this weight."""
        self._measure(x, quantizer)

    @torch.no_grad()
    def _measure(self, weight: Tensor, quantizer: Quantizer) -> Tensor:
        rows = weight.flatten(1) if quantizer.axis == 0 else weight.reshape(1, -1)
        if quantizer.fmt.bits > _MOST_BITS:
            scale = rows.abs().amax(1) * _ROOM / (quantizer.qmax + quantizer.fmt.offset)
        else:
            c1, c2 = self.coefficients
            spread = rows.square().mean(1).sqrt()
            # few weights of nearly one magnitude lie outside what was fitted, and all of them would be cut off
            scale = torch.maximum(
                c1 * spread - c2 * rows.abs().mean(1), spread / -(quantizer.qmin + quantizer.fmt.offset)
            )
        scale = torch.where(scale > 1e-30, scale, self.last)
        self.last.copy_(scale)
        return scale

    def scale(self) -> Tensor:
        """Return the scale of the weight last seen."""
        return self.last

    def forward(self, x: Tensor, quantizer: Quantizer, sign: Tensor | None = None) -> Tensor:
        """Return the fake-quantized weight; gradients pass inside the range."""
        scale, axis = signed_scale(self._measure(x, quantizer), sign, quantizer.axis)
        zero, ends = quantizer.zero_point, (quantizer.qmin, quantizer.qmax)
        return learned_range(x, scale, zero, *ends, axis, 1.0, True, self.kernels, quantizer.fmt.mid_rise)

    def settle(self, quantizer: Quantizer) -> None:
        """Write the last scale into the quantizer."""
        quantizer.set_qparams(self.last)


@lru_cache
def coefficients(qmin: int, qmax: int, offset: float = 0.0) -> tuple[float, float]:
    """Return ``(c1, c2)`` of ``scale = c1 sqrt(E[w^2]) - c2 E|w|`` for levels ``(code + offset) scale``.

    Fitted as in section 3 of the paper, to the scales of least mean squared error for six families of distributions of
    variance 1; codes go from ``qmin`` to ``qmax``. The paper's levels lie evenly from -alpha to alpha (``offset`` 0.5),
    which two's complement codes do not: its coefficients would put the scale of 2-bit codes 30 % too low. Rounded, so
    that machines agree.
    """
    rows, best = [], []
    for x, weight in _families():
        weight = weight / weight.sum()
        unit = x / (weight * x.square()).sum().sqrt()
        low, high = 1e-3, 4.0
        for _ in range(3):
            scales = torch.linspace(low, high, _TRIED, dtype=torch.float64)
            steps = unit / scales[:, None]
            levels = torch.round(steps - offset).clamp(qmin, qmax) + offset
            error = (weight * ((levels - steps) * scales[:, None]).square()).sum(1)
            at = int(error.argmin())
            low, high = float(scales[max(at - 1, 0)]), float(scales[min(at + 1, _TRIED - 1)])
        rows.append([1.0, -float((weight * unit.abs()).sum())])
        best.append([float(scales[at])])
    fit = torch.linalg.lstsq(torch.tensor(rows, dtype=torch.float64), torch.tensor(best, dtype=torch.float64)).solution
    return round(float(fit[0]), 4), round(float(fit[1]), 4)


def _families() -> list[tuple[Tensor, Tensor]]:
    """Return points and unnormalised densities: normal, uniform, Laplace, logistic, triangle, von Mises."""
    unit = torch.linspace(-1, 1, 4001, dtype=torch.float64)
    wide, turn = 30 * unit, torch.pi * unit
    return [
        (wide, torch.exp(-wide.square() / 2)), (unit, torch.ones_like(unit)), (wide, torch.exp(-wide.abs())),
        (wide, torch.cosh(wide / 2) ** -2), (unit, 1 - unit.abs()), (turn, torch.exp(torch.cos(turn))),
    ]  # fmt: skip
