"""Swap every node of the float graph for its fake-quantized twin, still uncalibrated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from zoo.context import Context
from zoo.quant.insert import insert_quantizers


@dataclass(frozen=True)
class Quantize:
    """No settings: the recipe's ``quant`` section says which tensor gets which format."""

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph."""
        return insert_quantizers(net, ctx.quant)
