"""Fold batch normalisation into the layer before it."""

from __future__ import annotations

import copy

import torch
from torch import fx, nn

from zoo.errors import GraphError


def clone(net: fx.GraphModule) -> fx.GraphModule:
    """Return a deep copy, so that a step never changes the graph it was given."""
    return copy.deepcopy(net)


def fold_batchnorm(net: fx.GraphModule) -> fx.GraphModule:
    """Return the graph without BatchNorm: ``w' = w g / sqrt(v + eps)``, ``b' = (b - m) g / sqrt(v + eps) + beta``.

    Computed in float64 (Krishnamoorthi 2018, eq. 20-21). Raises GraphError for a BatchNorm that does not directly
    follow a convolution or linear layer with no other consumer, and for one without running statistics.
    """
    net = clone(net)
    modules = dict(net.named_modules())
    for node in list(net.graph.nodes):
        bn = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(bn, nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        if bn.running_var is None:
            raise GraphError(
                f"{node.target}: batch normalisation without running statistics cannot be folded; train it with "
                "track_running_stats=True"
            )
        before = node.args[0]
        layer = modules.get(str(before.target)) if before.op == "call_module" else None
        if not isinstance(layer, nn.Conv2d | nn.Linear) or len(before.users) != 1:
            raise GraphError(
                f"{node.target}: batch normalisation can only be folded into a convolution or linear layer that "
                "directly precedes it and has no other consumer"
            )
        _fold(layer, bn)
        node.replace_all_uses_with(before)
        net.graph.erase_node(node)
        net.delete_submodule(str(node.target))
    net.recompile()
    return net


@torch.no_grad()
def _fold(layer: nn.Conv2d | nn.Linear, bn: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
    assert bn.running_var is not None and bn.running_mean is not None
    gamma = bn.weight.double() if bn.weight is not None else torch.ones(bn.num_features, dtype=torch.float64)
    beta = bn.bias.double() if bn.bias is not None else torch.zeros(bn.num_features, dtype=torch.float64)
    gain = gamma / (bn.running_var.double() + bn.eps).sqrt()
    bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(gain)
    weight = layer.weight.double() * gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(((bias - bn.running_mean.double()) * gain + beta).float(), requires_grad=False)
