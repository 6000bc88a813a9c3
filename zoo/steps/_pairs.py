"""Layers of a Q-graph that follow each other with nothing between them."""

from __future__ import annotations

from torch import fx

from zoo.quant.layers import QConv2d, QWeighted


def pairs_of(net: fx.GraphModule) -> list[tuple[QWeighted, QWeighted]]:
    """Return (producer, consumer) where the producer's output is read by that one layer alone, channel for channel."""
    modules = dict(net.named_modules())
    pairs = []
    for node in net.graph.nodes:
        first = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(first, QWeighted) or len(node.users) != 1:
            continue
        user = next(iter(node.users))
        second = modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(second, QWeighted) and (not isinstance(second, QConv2d) or _whole(second, first)):
            pairs.append((first, second))
    return pairs


def _whole(second: QConv2d, first: QWeighted) -> bool:
    channels = first.weight.shape[0]
    return (second.groups == 1 and second.weight.shape[1] == channels) or depthwise(second)


def depthwise(layer: QWeighted) -> bool:
    """Tell whether each output channel of a layer reads one input channel of its own."""
    outputs, inputs = layer.weight.shape[:2]
    return isinstance(layer, QConv2d) and layer.groups > 1 and layer.groups == outputs and inputs == 1
