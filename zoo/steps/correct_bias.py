"""Empirical bias correction: undo the shift that quantization gives every channel's mean."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.graph.fold import clone
from zoo.quant.layers import QWeighted
from zoo.steps._walk import float_twin, require_calibrated, walk


@dataclass(frozen=True)
class CorrectBias:
    """``b += E[float output] - E[quantized output]`` per channel, layer after layer (Nagel et al. 2019, section 4.2).

    The means are taken before the activation over ``images`` calibration images. Not after AdaRound or a
    reconstruction: those already remove the shift.
    """

    takes: ClassVar = ("calibrated",)

    images: int = 256
    batch: int = 64

    def __post_init__(self) -> None:
        """Refuse an empty estimate."""
        if self.images < 1 or self.batch < 1:
            raise ValueError("images and batch must be positive")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the corrected Q-graph. Cost: one float and one quantized forward, run layer by layer."""
        require_calibrated(net, "correct_bias")
        net = clone(net)
        batches = list(ctx.calibration.batches(self.batch, self.images))
        total = sum(isinstance(m, QWeighted) for m in net.modules())
        for visit in ctx.progress(walk(net, float_twin(net), batches), "correct_bias", total):
            layer = visit.layer
            ours = _mean(layer.multiply(x, layer.quantized_weight()) for x in visit.inputs)
            layer.bias.copy_((layer.bias.double() + _mean(visit.targets()) - ours).float())
        return net


def _mean(outputs: Iterable[Tensor]) -> Tensor:
    means = [(y.double().mean([d for d in range(y.dim()) if d != 1]), len(y)) for y in outputs]
    total: Tensor = sum((mean * n for mean, n in means), torch.zeros(()))
    return total / sum(n for _, n in means)
