"""Run a Q-graph and its float twin node by node, so that a layer is settled before the next one sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zoo.errors import GraphError, QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QNode, QWeighted
from zoo.quant.quantizer import Quantizer


@dataclass(frozen=True)
class Visit:
    """A layer with a weight, its input batches in the Q-graph, and layer and input batches in the float twin."""

    name: str
    layer: QWeighted
    inputs: list[Tensor]
    twin: QWeighted
    twin_inputs: list[Tensor]

    def targets(self) -> Iterator[Tensor]:
        """Yield the float twin's outputs, before the activation, batch by batch."""
        for x in self.twin_inputs:
            yield self.twin.multiply(x, self.twin.weight)


def require_float(net: fx.GraphModule, step: str) -> None:
    """Raise GraphError for a graph that is quantized already."""
    if "program" in net.meta or any(isinstance(m, QNode) for m in net.modules()):
        raise GraphError(f"{step}: the graph is already quantized; put {step} before quantize")


def require_ranges(net: fx.GraphModule, step: str) -> None:
    """Raise QuantError unless every quantizer of a Q-graph has its scale."""
    nodes = [m for m in net.modules() if isinstance(m, QNode)]
    if not nodes or not all(bool(n.out.ready) for n in nodes):
        raise QuantError(f"{step}: the graph is not calibrated; put the steps quantize and calibrate before it")


def require_calibrated(net: fx.GraphModule, step: str) -> None:
    """Raise QuantError unless a Q-graph has its scales and no BatchNorm of its own: see ``quantize.batchnorm``."""
    require_ranges(net, step)
    require_no_norms(net, step)


def require_zero_level(net: fx.GraphModule, step: str) -> None:
    """Raise QuantError for mid-rise weights, where a step counts on a level at zero."""
    if any(isinstance(m, QWeighted) and m.weight_quantizer.fmt.mid_rise for m in net.modules()):
        raise QuantError(f"{step}: weights have mid-rise levels, which calibrate, distill and train know; leave {step} "
                         "out or set quant.weight.mid_rise=false")  # fmt: skip


def require_no_norms(net: fx.GraphModule, step: str) -> None:
    """Raise QuantError for a Q-graph with BatchNorm of its own."""
    if any(isinstance(m, QWeighted) and m.norm is not None for m in net.modules()):
        raise QuantError(
            f"{step}: the layers still hold their batch normalisation; use the step train on them, or fold_batchnorm "
            "before quantize"
        )


def float_twin(net: fx.GraphModule) -> fx.GraphModule:
    """Return a copy of a Q-graph whose quantizers pass everything through."""
    twin = clone(net)
    for module in twin.modules():
        if isinstance(module, Quantizer):
            module.active = False
    return twin


@torch.no_grad()
def walk(net: fx.GraphModule, twin: fx.GraphModule, batches: list[Tensor]) -> Iterator[Visit]:
    """Yield the layers in the order of computation.

    What the caller changes in ``visit.layer`` is in force when the next layer's inputs are computed. Tensors of all
    batches are kept until their last reader has run.
    """
    ours, theirs = dict(net.named_modules()), dict(twin.named_modules())
    values: dict[fx.Node, tuple[list[Tensor], list[Tensor]]] = {}
    done: set[fx.Node] = set()
    for node in net.graph.nodes:
        if node.op == "placeholder":
            values[node] = (batches, batches)
        elif node.op == "call_module":
            name = str(node.target)
            layer, twin_layer = ours[name], theirs[name]
            if isinstance(layer, QWeighted) and isinstance(twin_layer, QWeighted):
                yield Visit(name, layer, values[node.args[0]][0], twin_layer, values[node.args[0]][1])
            values[node] = (
                [layer(*xs) for xs in zip(*(values[a][0] for a in node.args), strict=True)],
                [twin_layer(*xs) for xs in zip(*(values[a][1] for a in node.args), strict=True)],
            )
            done.add(node)
            for source in node.all_input_nodes:
                if all(user in done or user.op == "output" for user in source.users):
                    values.pop(source, None)
