"""Cut a graph where a single tensor passes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, fx, nn

from zoo.quant.layers import QWeighted


@dataclass(frozen=True)
class Block:
    """Consecutive nodes with one input tensor and one output tensor."""

    source: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def name(self) -> str:
        """Return the names of the first and the last node."""
        ends = dict.fromkeys((str(self.nodes[0].target), str(self.nodes[-1].target)))
        return " .. ".join(ends)

    def modules(self, net: fx.GraphModule) -> list[nn.Module]:
        """Return the modules of ``net`` in this block."""
        return [net.get_submodule(str(n.target)) for n in self.nodes]

    def run(self, net: fx.GraphModule, x: Tensor) -> Tensor:
        """Return the block's output on ``x``, with the modules of ``net`` (the graph itself or a copy of it)."""
        values: dict[fx.Node, Tensor] = {self.source: x}
        for node in self.nodes:
            module = net.get_submodule(str(node.target))
            values[node] = module(*(values[a] for a in node.args if isinstance(a, fx.Node)))
        return values[self.nodes[-1]]


def blocks(net: fx.GraphModule, layers: int) -> list[Block]:
    """Return the graph as blocks: a residual block each, and up to ``layers`` weighted layers of a plain chain."""
    order = {node: i for i, node in enumerate(net.graph.nodes)}
    last_read = {node: max((order[u] for u in node.users), default=-1) for node in order}
    image = next(n for n in order if n.op == "placeholder")
    found: list[Block] = []
    open_nodes: list[fx.Node] = []
    source, weighted, straight = image, 0, True
    for node, i in order.items():
        if node.op != "call_module":
            continue
        inside = isinstance(net.get_submodule(str(node.target)), QWeighted)
        if inside and straight and weighted == layers and open_nodes:
            found.append(Block(source, tuple(open_nodes)))
            source, open_nodes, weighted = open_nodes[-1], [], 0
        open_nodes.append(node)
        weighted += inside
        # one tensor passes here if nothing older than this node is read later
        closed = all(last_read[other] <= i for other in order if order[other] < i)
        if closed and not straight:
            found.append(Block(source, tuple(open_nodes)))
            source, open_nodes, weighted = node, [], 0
        if closed and open_nodes and len(node.users) > 1:  # a fork: a residual block begins after it
            found.append(Block(source, tuple(open_nodes)))
            source, open_nodes, weighted = node, [], 0
        straight = closed
    if open_nodes:
        found.append(Block(source, tuple(open_nodes)))
    return found
