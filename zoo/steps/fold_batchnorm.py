"""Fold every BatchNorm into the layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from zoo.context import Context
from zoo.graph import fold
from zoo.steps._walk import require_float


@dataclass(frozen=True)
class FoldBatchnorm:
    """No settings; see ``zoo.graph.fold.fold_batchnorm``."""

    takes: ClassVar = ("float",)

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the folded graph; GraphError after quantize."""
        require_float(net, "fold_batchnorm")
        return fold.fold_batchnorm(net)
