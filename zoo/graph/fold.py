"""Fold batch normalisation into the layer before it."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from zoo.errors import GraphError
from zoo.graph import ops


def clone(net: fx.GraphModule) -> fx.GraphModule:
    """Return a deep copy, so that a step never changes the graph it was given."""
    return copy.deepcopy(net)


def fold_batchnorm(net: fx.GraphModule) -> fx.GraphModule:
    """Return the graph without BatchNorm: ``w' = w g / sqrt(v + eps)``, ``b' = (b - m) g / sqrt(v + eps) + beta``.

    Computed in float64 (Krishnamoorthi 2018, eq. 20-21). It goes into the convolution or linear layer whose output it
    alone reads, or into all of those that a concatenation joins for it. Elsewhere, behind a sum or before the first
    convolution of a residual block, a BatchNorm of ``[N, C, H, W]`` becomes a depthwise 1 x 1 convolution.

    Raises GraphError for one without running statistics, and for one of ``[N, features]`` that has no such layer.
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
        layers = _layers(node.args[0], modules)
        if layers:
            counts = [len(layer.weight) for layer in layers]
            for layer, *affine in zip(layers, *(torch.split(part, counts) for part in _affine(bn)), strict=True):
                _fold(layer, *affine)
            node.replace_all_uses_with(node.args[0])
            net.graph.erase_node(node)
            net.delete_submodule(str(node.target))
        elif isinstance(bn, nn.BatchNorm2d):
            net.set_submodule(str(node.target), _depthwise(bn))
        else:
            raise GraphError(
                f"{node.target}: batch normalisation of [N, features] can only be folded into a linear layer that "
                "directly precedes it and has no other consumer"
            )
    net.recompile()
    return net


def _layers(node: fx.Node, modules: dict[str, nn.Module]) -> list[nn.Conv2d | nn.Linear]:
    """Return the layers that make this tensor, channel for channel, for one reader alone; none where others do."""
    made = modules.get(str(node.target)) if node.op == "call_module" and len(node.users) == 1 else None
    if isinstance(made, nn.Conv2d | nn.Linear):
        return [made]
    if not isinstance(made, ops.Cat) or len(set(node.args)) != len(node.args):
        return []
    parts = [_layers(part, modules) for part in node.all_input_nodes]
    return [layer for part in parts for layer in part] if all(parts) else []


def _affine(bn: nn.BatchNorm1d | nn.BatchNorm2d) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean, gain and beta of each channel in float64: ``y = (x - mean) gain + beta``."""
    assert bn.running_var is not None and bn.running_mean is not None
    gamma = bn.weight.double() if bn.weight is not None else torch.ones(bn.num_features, dtype=torch.float64)
    beta = bn.bias.double() if bn.bias is not None else torch.zeros(bn.num_features, dtype=torch.float64)
    gain = gamma / (bn.running_var.double() + bn.eps).sqrt()
    return bn.running_mean.double(), gain, beta


@torch.no_grad()
def _fold(layer: nn.Conv2d | nn.Linear, mean: Tensor, gain: Tensor, beta: Tensor) -> None:
    bias = layer.bias.double() if layer.bias is not None else torch.zeros_like(gain)
    weight = layer.weight.double() * gain.reshape(-1, *[1] * (layer.weight.dim() - 1))
    layer.weight = nn.Parameter(weight.float(), requires_grad=False)
    layer.bias = nn.Parameter(((bias - mean) * gain + beta).float(), requires_grad=False)


def _depthwise(bn: nn.BatchNorm2d) -> ops.Conv2d:
    layer = ops.Conv2d(bn.num_features, bn.num_features, (1, 1), groups=bn.num_features, bias=False)
    layer.weight = nn.Parameter(torch.ones_like(layer.weight), requires_grad=False)
    _fold(layer, *_affine(bn))
    return layer
