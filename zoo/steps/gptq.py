"""Round the weights column by column, each column's error made good by the columns that are still free."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.quant.layers import QWeighted
from zoo.steps._least_squares import Quadratic, per_output, round_layers


@dataclass(frozen=True)
class Gptq:
    """GPTQ (Frantar et al. 2023, algorithm 1) layer by layer, towards the float twin's outputs.

    ``images`` calibration images give ``samples`` output positions for each layer's Hessian, ``damping`` is relative to
    its mean diagonal. ``scales`` tries so many shrunken weight scales per channel and keeps the one of least error
    (0: those of calibrate). Columns are taken in order of their Hessian diagonal, the largest first.
    """

    images: int = 256
    batch: int = 32
    samples: int = 32768
    damping: float = 0.01
    scales: int = 20

    def __post_init__(self) -> None:
        """Refuse counts below one and a damping under which a constant input has no solution."""
        if min(self.images, self.batch, self.samples) < 1 or self.scales < 0 or self.damping <= 0:
            raise ValueError("images, batch, samples and damping must be positive, scales not negative")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph with rounded weights and corrected biases; QuantError for one that is not calibrated."""
        return round_layers(net, ctx, "gptq", self, round_columns)


def round_columns(layer: QWeighted, form: Quadratic) -> Tensor:
    """Return the codes [G, m, d] of GPTQ, under the layer's own scales."""
    quantizer = layer.weight_quantizer
    scale, zero = per_output(layer, quantizer.scale), per_output(layer, quantizer.zero_point)
    order = form.hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    hessian = form.hessian.double()
    hessian = hessian.gather(1, order[:, :, None].expand_as(hessian))
    hessian = hessian.gather(2, order[:, None, :].expand_as(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    upper = torch.linalg.cholesky(inverse).transpose(1, 2).float()  # row i: how column i's error spreads to the right
    columns = order[:, None, :].expand_as(form.best)
    weight = form.best.gather(2, columns).clone()
    codes = torch.empty_like(weight)
    for i in range(weight.shape[2]):
        column = weight[..., i : i + 1]
        code = (torch.round(column / scale) + zero).clamp(quantizer.qmin, quantizer.qmax)
        codes[..., i : i + 1] = code
        error = (column - (code - zero) * scale) / upper[:, i, i, None, None]
        weight[..., i + 1 :] -= error * upper[:, i, None, i + 1 :]
    return torch.empty_like(codes).scatter_(2, columns, codes)
