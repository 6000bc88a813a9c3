"""Tensor shapes of a Program."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from zoo.integer.passing import passing
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
            if x.dim() != 2:  # torch multiplies the last dimension, scales and biases belong to the second
                raise ValueError(f"{node.name}: a linear layer takes [N, features], got {list(x.shape)}")
            y = F.linear(x, torch.empty(program.tensors[f"{node.name}.weight"].shape, device="meta"))
        elif node.op in ("add", "mul"):
            first, second = (found[i] for i in node.inputs)
            # a sum does not broadcast; of a product of other ranks torch would align channels with images of the batch
            fits = first == second or (node.op == "mul" and products_fit(first, second))
            if not fits:
                verb = "add" if node.op == "add" else "multiply"
                raise ValueError(f"{node.name}: cannot {verb} {list(first)} and {list(second)}")
            y = x + torch.empty(second, device="meta")
        elif node.op == "cat":
            y = torch.cat([torch.empty(found[i], device="meta") for i in node.inputs], 1)
        elif node.op == "mean":
            y = x.mean((2, 3), keepdim=True)
        elif node.op == "avg_pool":
            y = F.avg_pool2d(x, tuple(node.attrs["kernel_size"]), tuple(node.attrs["stride"]))
        elif (module := passing(node)) is not None:
            if node.op == "slice" and node.attrs["stop"] > x.shape[1]:  # torch takes what there is
                raise ValueError(f"{node.name}: {x.shape[1]} channels have none before {node.attrs['stop']}")
            y = module(x)
        else:
            y = x
        found[node.name] = tuple(y.shape)
    return found


def products_fit(a: Sequence[int], b: Sequence[int]) -> bool:
    """Tell whether tensors of these shapes, batch first, have a product: each dimension behind it is equal or 1."""
    return len(a) == len(b) and a[0] == b[0] and all(m == n or 1 in (m, n) for m, n in zip(a[1:], b[1:], strict=True))


def classes(program: Program) -> int:
    """Return how many logits a network gives."""
    return shapes(program)[program.nodes[-1].name][1]


def window(node: Node, found: dict[str, tuple[int, ...]]) -> int:
    """Return how many elements a mean or average pool adds up, given all shapes."""
    kernel = node.attrs.get("kernel_size", found[node.inputs[0]][2:])
    return int(kernel[0]) * int(kernel[1])
