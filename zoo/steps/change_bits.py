"""Go on with fewer or more bits: progressive bit-width."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx

from zoo.context import Context
from zoo.errors import RecipeError
from zoo.graph.fold import clone
from zoo.quant.layers import QNode, QWeighted
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import BITS


@dataclass(frozen=True)
class ChangeBits:
    """Give every tensor of ``old`` bits ``new`` ones; the ranges are carried over, ``s' = s 2^old / 2^new``.

    The lower end of a range stays where it is; the upper end, which lies one step below the power of two, moves by less
    than a new step: with fewer bits a range without negative values of 15 old steps keeps 12 of them at 2 bits.
    Training through 4, 3 and 2 bits starts each stage from the last one's weights. A step calibrate after this one
    sets the ranges anew instead. Tensors of other widths (first and last layer, logits) stay as they are.
    """

    takes: ClassVar = ("quantized", "calibrated")

    old: int
    new: int

    def __post_init__(self) -> None:
        """Refuse widths that no checkpoint can hold, and 16 bits, a format of activations alone."""
        known = [b for b in BITS if b <= 8]
        if self.old not in known or self.new not in known:
            raise ValueError(f"old and new must be one of {', '.join(map(str, known))}")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph in the new widths; RecipeError where no tensor has ``old`` bits."""
        net = clone(net)
        found = 0
        for node in net.modules():
            if not isinstance(node, QNode):
                continue
            if node.out.fmt.bits == self.old:
                node.out = self._changed(node.out)
                found += 1
            if isinstance(node, QWeighted) and node.weight_quantizer.fmt.bits == self.old:
                node.weight_quantizer = self._changed(node.weight_quantizer)
                found += 1
        if not found:
            raise RecipeError(f"change_bits: no tensor has {self.old} bits; put it after quantize, check quant.*.bits")
        return net

    @torch.no_grad()
    def _changed(self, quantizer: Quantizer) -> Quantizer:
        channels = quantizer.scale.numel() if quantizer.of_weights else 0
        try:
            fmt = replace(quantizer.fmt, bits=self.new)
        except ValueError as e:
            raise RecipeError(f"change_bits: {e}; choose another new, or another format in quant") from None
        made = Quantizer(fmt, signed=quantizer.signed, channels=channels)
        if bool(quantizer.ready):
            ratio = 2.0 ** (self.old - self.new)
            zero = torch.round(quantizer.zero_point / ratio).clamp(made.qmin, made.qmax)
            made.set_qparams(quantizer.scale * ratio, zero)
        return made
