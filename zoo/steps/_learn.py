"""Shared by the steps that tune a Q-graph: parameters in their own units, so that one learning rate fits all layers."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from zoo.quant.layers import QNode, QWeighted


class Units:
    """Adam on dimensionless copies of parameters.

    A folded depthwise weight may be a hundred times larger than its neighbour's. Weights therefore move in units of
    their own quantization step (per channel), biases in units of their layer's output step, scales in units of
    themselves. ``gather`` turns gradients into those units, ``scatter`` writes the new values back.
    """

    def __init__(self) -> None:
        """Start without parameters."""
        self.items: list[tuple[nn.Parameter, nn.Parameter, Tensor]] = []
        self.scales: list[nn.Parameter] = []
        self.groups: list[dict[str, object]] = []

    def add(self, parameters: Iterable[tuple[nn.Parameter, Tensor]], lr: float, *, positive: bool = False) -> None:
        """Learn these parameters, each given with its unit (broadcastable), with Adam's rate ``lr`` per step."""
        own = []
        for parameter, unit in parameters:
            unit = unit.detach().clone().clamp(min=1e-30)
            parameter.requires_grad_(True)
            copy = nn.Parameter(parameter.detach() / unit)
            self.items.append((parameter, copy, unit))
            own.append(copy)
            if positive:
                self.scales.append(copy)
        if own and lr > 0:
            self.groups.append({"params": own, "lr": lr})

    def optimizer(self) -> torch.optim.Adam:
        """Return the optimizer of everything added."""
        return torch.optim.Adam(self.groups, betas=(0.9, 0.99))

    def gather(self) -> None:
        """Hand the gradients of the real parameters to their copies."""
        for parameter, copy, unit in self.items:
            copy.grad = None if parameter.grad is None else parameter.grad * unit
            parameter.grad = None

    @torch.no_grad()
    def scatter(self) -> None:
        """Write the copies back; a scale never falls below a thousandth of where it started."""
        for copy in self.scales:
            copy.clamp_(min=1e-3)
        for parameter, copy, unit in self.items:
            parameter.copy_(copy * unit)

    def finish(self) -> None:
        """Stop learning."""
        for parameter, _, _ in self.items:
            parameter.requires_grad_(False)
            parameter.grad = None


def units_of(
    nodes: Iterable[QNode], *, lr_weight: float, lr_scale: float, lr_bias: float, weight_scales: bool = True
) -> Units:
    """Return the learnable parameters of some Q-nodes; power-of-two scales stay as they are."""
    nodes = list(nodes)
    units = Units()
    weighted = [n for n in nodes if isinstance(n, QWeighted)]
    if lr_weight > 0:
        units.add(((n.weight, _per_channel(n)) for n in weighted), lr_weight)
    if lr_bias > 0:
        units.add(((n.bias, n.out.scale.detach()) for n in weighted), lr_bias)
    if lr_scale > 0:
        scales = [n.weight_quantizer.scale for n in weighted if n.weight_quantizer.fmt.scale == "float"]
        scales = scales if weight_scales else []
        scales += [n.out.scale for n in nodes if n.out.fmt.scale == "float" and n.out.fmt.bits <= 8]
        units.add(((s, s.detach()) for s in scales), lr_scale, positive=True)
    return units


def _per_channel(node: QWeighted) -> Tensor:
    return node.weight_quantizer.scale.detach().reshape([-1] + [1] * (node.weight.dim() - 1))
