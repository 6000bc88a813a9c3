"""Operations that only pick and order codes: one module serves the integer and the fake-quantized network."""

from __future__ import annotations

from torch import nn

from zoo.graph import ops
from zoo.integer.program import Node


def passing(node: Node) -> nn.Module | None:
    """Return the module of a node whose output has its input's format, None for any other."""
    if node.op == "max_pool":
        return nn.MaxPool2d(node.attrs["kernel_size"], node.attrs["stride"], node.attrs["padding"])
    if node.op == "flatten":
        return nn.Flatten(1)
    if node.op == "slice":
        return ops.Slice(node.attrs["start"], node.attrs["stop"])
    return None
