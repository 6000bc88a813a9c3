"""Insert quantizers by the recipe's formats."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import fx

from zoo.context import Context
from zoo.quant.insert import insert_quantizers
from zoo.steps._walk import float_twin


@dataclass(frozen=True)
class Quantize:
    """Swap every layer, add, pool and activation for its Q-module; formats come from the recipe's ``quant``.

    ``batchnorm``: ``fold`` expects none (the step fold_batchnorm comes before); ``merge`` keeps each one in the layer
    before it, to be trained with it, until integerize merges it.
    """

    takes: ClassVar = ("float",)
    gives: ClassVar = "quantized"

    batchnorm: Literal["fold", "merge"] = "fold"

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph, which still computes in float; later steps tune towards it as ``ctx.reference``."""
        graph = insert_quantizers(net, ctx.quant, keep_norms=self.batchnorm == "merge")
        ctx.reference = float_twin(graph)
        return graph
