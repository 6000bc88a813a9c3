"""Fold every BatchNorm into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from zoo.context import Context
from zoo.graph import fold


@dataclass(frozen=True)
class FoldBatchnorm:
    """No settings; see ``zoo.graph.fold.fold_batchnorm``."""

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the folded graph."""
        return fold.fold_batchnorm(net)
