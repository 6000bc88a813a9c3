"""Give all channels of a tensor the same range, so that one scale serves them all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.errors import QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QConv2d, QNode, QWeighted
from zoo.steps._walk import float_twin


@dataclass(frozen=True)
class EqualizeActivations:
    """Divide each output channel of a layer by its range, and multiply the next layer's weight for that channel.

    As cross-layer equalization (Nagel et al. 2019, eq. 7-8), but by the activations' ranges: with 4 bits, channels
    that fill a tenth of their tensor's range have one code left. Where the next layer is depthwise, scales per output
    channel on both sides absorb the factor and the equalization costs nothing; elsewhere the next weight's columns
    spread, so only the power ``strength`` of the factor is moved (Xiao et al. 2023, eq. 4). A ReLU6 becomes a cap per
    channel, which the quantizer's own clamp then stands for. The range of a channel is its ``percentile`` over
    ``images`` calibration images. Between quantize and calibrate.
    """

    images: int = 128
    batch: int = 32
    percentile: float = 99.9
    strength: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an empty estimate."""
        if self.images < 1 or self.batch < 1 or not 50 <= self.percentile <= 100 or not 0 <= self.strength <= 1:
            raise ValueError("images and batch must be positive, percentile in [50, 100], strength in [0, 1]")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph with the same float function; raises QuantError before quantize or after calibrate."""
        nodes = [m for m in net.modules() if isinstance(m, QNode)]
        if not nodes or any(m.out.active for m in nodes):
            raise QuantError("equalize_activations: put it between quantize and calibrate")
        net = clone(net)
        pairs = _pairs(net)
        ranges = self._ranges(net, [first for first, _ in pairs], ctx)
        for first, second in pairs:
            depthwise = isinstance(second, QConv2d) and second.groups > 1
            share = ranges[first] / ranges[first].max()
            _rescale(first, second, share.clamp(min=1e-3) ** (1.0 if depthwise else self.strength))
        ctx.log["equalize_activations"] = {"pairs": len(pairs)}
        ctx.reference = float_twin(net)
        return net

    def _ranges(self, net: fx.GraphModule, layers: list[QWeighted], ctx: Context) -> dict[QWeighted, Tensor]:
        seen: dict[QWeighted, list[Tensor]] = {layer: [] for layer in layers}

        def keep(layer: QWeighted, args: tuple[Tensor, ...], y: Tensor) -> None:
            rows = y.detach().abs().transpose(0, 1).flatten(1)
            kept = max(1, round(rows.shape[1] * (1 - self.percentile / 100)))
            seen[layer].append(rows.topk(min(kept + 1, rows.shape[1]), dim=1).values[:, -1])

        hooks = [layer.register_forward_hook(keep) for layer in layers]
        try:
            count = -(-self.images // self.batch)
            for batch in ctx.progress(ctx.calibration.batches(self.batch, self.images), "channel ranges", count):
                net(batch)
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: torch.stack(parts).mean(0) for layer, parts in seen.items()}


def _pairs(net: fx.GraphModule) -> list[tuple[QWeighted, QWeighted]]:
    """Return (producer, consumer) where the producer's output is read by that one layer alone."""
    modules = dict(net.named_modules())
    pairs = []
    for node in net.graph.nodes:
        first = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(first, QWeighted) or len(node.users) != 1:
            continue
        second = modules.get(str(next(iter(node.users)).target))
        if isinstance(second, QWeighted) and (not isinstance(second, QConv2d) or _plain(second, first)):
            pairs.append((first, second))
    return pairs


def _plain(second: QConv2d, first: QWeighted) -> bool:
    channels = first.weight.shape[0]
    return (second.groups == 1 and second.weight.shape[1] == channels) or second.groups == second.weight.shape[0]


def _rescale(first: QWeighted, second: QWeighted, factor: Tensor) -> None:
    first.weight.data = first.weight.data / factor.reshape([-1] + [1] * (first.weight.dim() - 1))
    first.bias.data = first.bias.data / factor
    if first.act == "relu6":
        first.act, first.cap = "relu", 6.0 / factor
    elif first.cap is not None:
        first.cap = first.cap / factor
    if isinstance(second, QConv2d) and second.groups > 1:
        second.weight.data = second.weight.data * factor.reshape(-1, 1, 1, 1)
    else:
        second.weight.data = second.weight.data * factor.reshape([1, -1] + [1] * (second.weight.dim() - 2))
