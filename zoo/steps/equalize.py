"""Cross-layer equalization: the same function with evener weight ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from zoo.context import Context
from zoo.errors import GraphError
from zoo.graph import ops
from zoo.graph.fold import clone
from zoo.steps._walk import require_float


@dataclass(frozen=True)
class Equalize:
    """Rescale pairs of layers with one ReLU (or nothing) between them (Nagel et al. 2019, eq. 9-12).

    With ranges ``r1`` of a producer's output channels and ``r2`` of its consumer's input channels,
    ``s = sqrt(r1 r2) / r2``; the producer and its bias are divided by ``s``, the consumer multiplied. Depthwise layers
    take part, so the triple pointwise-depthwise-pointwise is equalized by sweeping its two pairs.
    """

    takes: ClassVar = ("float",)

    sweeps: int = 40
    tolerance: float = 2e-7

    def __post_init__(self) -> None:
        """Refuse an empty sweep."""
        if self.sweeps < 1 or self.tolerance < 0:
            raise ValueError("sweeps must be positive and tolerance not negative")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the equalized float graph; GraphError after quantize or before fold_batchnorm."""
        net = clone(net)
        pairs = layer_pairs(net, "equalize")
        for _ in range(self.sweeps):
            change = max((equalize_pair(a, b) for a, b in pairs), default=0.0)
            if change < self.tolerance:
                break
        ctx.log["equalize"] = {"pairs": len(pairs)}
        return net


def require_folded(net: fx.GraphModule, step: str) -> None:
    """Raise GraphError for a graph that is quantized already, or holds a BatchNorm."""
    require_float(net, step)
    if any(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules()):
        raise GraphError(f"{step}: the graph holds batch normalisation; put fold_batchnorm before {step}")


def layer_pairs(net: fx.GraphModule, step: str) -> list[tuple[nn.Conv2d | nn.Linear, nn.Conv2d | nn.Linear]]:
    """Return (producer, consumer) pairs joined by nothing but a ReLU or a channel-wise linear pool."""
    require_folded(net, step)
    modules = dict(net.named_modules())
    pairs = []
    for node in net.graph.nodes:
        first = modules.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(first, nn.Conv2d | nn.Linear):
            continue
        after = node
        second: nn.Module | None = None
        while len(after.users) == 1:
            after = next(iter(after.users))
            second = modules.get(str(after.target)) if after.op == "call_module" else None
            if not isinstance(second, nn.ReLU | ops.GlobalMean | nn.Flatten | nn.MaxPool2d):
                break
        if isinstance(second, nn.Conv2d | nn.Linear) and _compatible(first, second):
            pairs.append((first, second))
    return pairs


def _compatible(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear) -> bool:
    if isinstance(second, nn.Conv2d):
        depthwise = second.groups == second.in_channels == second.out_channels
        return (second.groups == 1 or depthwise) and second.in_channels == first.weight.shape[0]
    return second.in_features == first.weight.shape[0]


def consumer_view(second: nn.Conv2d | nn.Linear) -> Tensor:
    """Return the consumer's weight as ``[in channels, rest]``: rows of a depthwise layer, columns of any other."""
    weight = second.weight
    if isinstance(second, nn.Conv2d) and second.groups > 1:
        return weight.flatten(1)
    return weight.transpose(0, 1).flatten(1)


def equalize_pair(first: nn.Conv2d | nn.Linear, second: nn.Conv2d | nn.Linear) -> float:
    """Equalize one pair in place and return the largest relative change; dead channels are left alone."""
    r1, r2 = first.weight.flatten(1).abs().amax(1), consumer_view(second).abs().amax(1)
    s = (torch.sqrt(r1 * r2) / r2).clamp(1e-8, 1e8)
    s = torch.where((r1 > 0) & (r2 > 0), s, torch.ones_like(s))
    rows = s.reshape([-1] + [1] * (first.weight.dim() - 1))
    first.weight.data = first.weight.data / rows
    if first.bias is not None:
        first.bias.data = first.bias.data / s
    if isinstance(second, nn.Conv2d) and second.groups > 1:
        second.weight.data = second.weight.data * s.reshape(-1, 1, 1, 1)
    else:
        second.weight.data = second.weight.data * s.reshape([1, -1] + [1] * (second.weight.dim() - 2))
    return float((s - 1).abs().max())
