"""Tensor shapes of a Program."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from zoo.integer.program import Node, Program


def shapes(program: Program) -> dict[str, tuple[int, ...]]:
    """Return each node's output shape for one image, worked out without arithmetic on real data."""
    found: dict[str, tuple[int, ...]] = {}
    for node in program.nodes:
        if node.op == "input":
            found[node.name] = (1, *program.input_shape)
            continue
        x = torch.empty(found[node.inputs[0]], device="meta")
        if node.op == "conv2d":
            w = torch.empty(program.tensors[f"{node.name}.weight"].shape, device="meta")
            groups = node.attrs["groups"]
            if x.shape[1] != w.shape[1] * groups or w.shape[0] % groups:  # torch compares them with real data only
                raise ValueError(
                    f"{node.name}: a weight of {list(w.shape)} in {groups} groups does not take {x.shape[1]} channels"
                )
            x = F.pad(x, tuple(node.attrs["pad"]))
            y = F.conv2d(
                x, w, None, tuple(node.attrs["stride"]), 0, tuple(node.attrs["dilation"]), node.attrs["groups"]
            )
        elif node.op == "linear":
            y = F.linear(x, torch.empty(program.tensors[f"{node.name}.weight"].shape, device="meta"))
        elif node.op in ("add", "mul"):
            y = x + torch.empty(found[node.inputs[1]], device="meta")
            if node.op == "add" and found[node.inputs[0]] != found[node.inputs[1]]:  # a sum does not broadcast
                sizes = " and ".join(str(list(found[i])) for i in node.inputs)
                raise ValueError(f"{node.name}: cannot add {sizes}")
        elif node.op == "cat":
            y = torch.cat([torch.empty(found[i], device="meta") for i in node.inputs], 1)
        elif node.op == "mean":
            y = x.mean((2, 3), keepdim=True)
        elif node.op == "avg_pool":
            y = F.avg_pool2d(x, tuple(node.attrs["kernel_size"]), tuple(node.attrs["stride"]))
        elif node.op == "max_pool":
            y = F.max_pool2d(x, node.attrs["kernel_size"], node.attrs["stride"], node.attrs["padding"])
        elif node.op == "flatten":
            y = x.flatten(1)
        else:
            y = x
        found[node.name] = tuple(y.shape)
    return found


def classes(program: Program) -> int:
    """Return how many logits a network gives."""
    return shapes(program)[program.nodes[-1].name][1]


def window(node: Node, found: dict[str, tuple[int, ...]]) -> int:
    """Return how many elements a mean or average pool adds up, given all shapes."""
    kernel = node.attrs.get("kernel_size", found[node.inputs[0]][2:])
    return int(kernel[0]) * int(kernel[1])
