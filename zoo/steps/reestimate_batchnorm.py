"""Re-estimate BatchNorm statistics as the plain mean over calibration batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx, nn

from zoo.context import Context
from zoo.errors import DataError, GraphError
from zoo.graph.fold import clone


@dataclass(frozen=True)
class ReestimateBatchnorm:
    """Cumulative moving average over ``batches`` batches in train mode (Nagel et al. 2022, section 3.2).

    The images are cropped and flipped as those of the last step train were, unless ``augment`` says otherwise: crops of
    padded images have other statistics than whole ones, and the weights have learned for theirs. A last batch that is
    not full would count as much as the others, and is left out unless it is the only one.
    """

    takes: ClassVar = ("float", "quantized", "calibrated")

    batches: int = 50
    batch: int = 32
    augment: bool | None = None

    def __post_init__(self) -> None:
        """Refuse an empty estimate; a batch of one has no variance."""
        if self.batches < 1 or self.batch < 2:
            raise ValueError("batches must be positive and batch at least 2")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the graph with new statistics; GraphError when no BatchNorm is left, DataError for a single image."""
        net = clone(net)
        norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)]
        if not norms:
            raise GraphError("reestimate_batchnorm: no batch normalisation is left; put it before fold_batchnorm")
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        if len(ctx.calibration) < 2:
            raise DataError("reestimate_batchnorm: one image has no variance; give more images")
        limit = min(self.batches * self.batch, len(ctx.calibration))
        draws = ctx.generator() if (ctx.augmented if self.augment is None else self.augment) else None
        batches = ctx.calibration.batches(self.batch, limit, draws)
        for batch in ctx.progress(batches, "batch norm", -(-limit // self.batch)):
            if len(batch) == min(self.batch, limit):
                net(batch)
        # a training that follows keeps its moving averages
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        return net.eval()
