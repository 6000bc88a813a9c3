"""Round the weights column by column, each column's error made good by the columns that are still free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.quant.layers import QWeighted
from zoo.steps._least_squares import Quadratic, per_output, round_layers

WIDE = 2048  # inputs of a layer from which on memory is what a column waits for
BLOCK = 128


@dataclass(frozen=True)
class Gptq:
    """GPTQ (Frantar et al. 2023, algorithm 1) layer by layer, towards the float twin's outputs.

    ``images`` calibration images give ``samples`` output positions for each layer's Hessian. ``damping`` is relative to
    its mean diagonal; None takes as much as serves images best that were not fitted. ``scales`` tries so many shrunken
    weight scales per channel and keeps the one of least error (0: those of calibrate). Columns are taken in order of
    their Hessian diagonal, the largest first. Then come up to ``sweeps`` of coordinate descent, which takes the best
    code of each column in turn, all others given, and the best scale of each channel. With ``passes`` > 0 only errors
    that pass the activation and the output's clamp count, found in so many rounds of least squares: for activations of
    few bits, whose noise is large.
    """

    takes: ClassVar = ("calibrated",)

    images: int = 256
    batch: int = 32
    samples: int = 32768
    damping: float | None = None
    scales: int = 20
    sweeps: int = 4
    passes: int = 0

    def __post_init__(self) -> None:
        """Refuse counts below one and a damping under which a constant input has no solution."""
        if min(self.images, self.batch, self.samples) < 1 or (self.damping is not None and self.damping <= 0):
            raise ValueError("images, batch, samples and damping must be positive")
        if min(self.scales, self.sweeps, self.passes) < 0:
            raise ValueError("scales, sweeps and passes must not be negative")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph with rounded weights and corrected biases; QuantError for one that is not calibrated."""
        return round_layers(net, ctx, "gptq", self, self._codes)

    def _codes(self, layer: QWeighted, form: Quadratic) -> Tensor:
        return descend(layer, form, round_columns(layer, form), self.sweeps)


def round_columns(layer: QWeighted, form: Quadratic) -> Tensor:
    """Return the codes [G, m, d] of GPTQ, under the layer's own scales."""
    quantizer = layer.weight_quantizer
    scale, zero = per_output(layer, quantizer.scale), per_output(layer, quantizer.zero_point)
    order = form.hessian.diagonal(dim1=1, dim2=2).argsort(1, descending=True)
    hessian = form.hessian.double()
    hessian = hessian.gather(1, order[:, :, None].expand_as(hessian))
    hessian = hessian.gather(2, order[:, None, :].expand_as(hessian))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(hessian))
    # row i: how column i's error spreads to the right
    upper = torch.linalg.cholesky(inverse).transpose(1, 2).to(form.best.dtype)
    columns = order[:, None, :].expand_as(form.best)
    weight = form.best.gather(2, columns).clone()
    codes, errors = torch.empty_like(weight), torch.empty_like(weight)
    for start, end in _blocks(weight.shape[2]):
        for i in range(start, end):
            column = weight[..., i : i + 1]
            code = (torch.round(column / scale) + zero).clamp(quantizer.qmin, quantizer.qmax)
            codes[..., i : i + 1] = code
            error = (column - (code - zero) * scale) / upper[:, i, i, None, None]
            errors[..., i : i + 1] = error
            weight[..., i + 1 : end] -= error * upper[:, i, None, i + 1 : end]
        weight[..., end:] -= errors[..., start:end] @ upper[:, start:end, end:]
    return torch.empty_like(codes).scatter_(2, columns, codes)


def _blocks(columns: int) -> list[tuple[int, int]]:
    """Return the blocks [start, end) of columns after which the others are updated (Frantar et al. 2023, section 3.2).

    A layer of few inputs is one block: its codes are those of records made column by column.
    """
    size = columns if columns < WIDE else BLOCK
    return [(start, min(start + size, columns)) for start in range(0, columns, size)]


def descend(layer: QWeighted, form: Quadratic, codes: Tensor, sweeps: int) -> Tensor:
    """Return codes [G, m, d] of no greater error, by cyclic coordinate descent on the layer's quadratic form.

    Before each sweep symmetric per-channel weights get the scale of least error for their codes,
    ``s = c H best / c H c``, which is written into the layer's quantizer. Ends early when a sweep changes nothing.
    """
    quantizer = layer.weight_quantizer
    fmt, zero = quantizer.fmt, per_output(layer, quantizer.zero_point)
    for _ in range(sweeps):
        scale, centred = per_output(layer, quantizer.scale), codes - zero
        if fmt.symmetric and fmt.scale == "float" and quantizer.axis is not None:
            pulled = centred @ form.hessian
            along, square = (pulled * form.best).sum(-1, keepdim=True), (pulled * centred).sum(-1, keepdim=True)
            scale = torch.where((along > 0) & (square > 0), along / square.clamp(min=1e-30), scale)
            quantizer.set_qparams(scale.reshape(-1), quantizer.zero_point)
        weight, before, codes = centred * scale, codes, codes.clone()
        slope, moved = (weight - form.best) @ form.hessian, torch.empty_like(weight)
        for start, end in _blocks(codes.shape[2]):
            for i in range(start, end):
                wanted = weight[..., i] - slope[..., i] / form.hessian[:, None, i, i]
                code = (torch.round(wanted / scale[..., 0]) + zero[..., 0]).clamp(quantizer.qmin, quantizer.qmax)
                moved[..., i] = (code - codes[..., i]) * scale[..., 0]
                slope[..., i + 1 : end] += moved[..., i : i + 1] * form.hessian[:, None, i, i + 1 : end]
                codes[..., i] = code
            slope[..., end:] += moved[..., start:end] @ form.hessian[:, start:end, end:]
        if torch.equal(codes, before):
            break
    return codes
