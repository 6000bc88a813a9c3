"""Channels taken out of a tensor: ``x[:, a:b]``, ``split`` and ``chunk``."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from zoo.errors import GraphError
from zoo.graph.calls import constants, shape, within

PARTS = (torch.split, torch.chunk, torch.tensor_split, "split", "chunk", "tensor_split")


def taken(node: fx.Node) -> tuple[fx.Node, int, int]:
    """Return what an index takes: the tensor ``[N, C, ...]``, and its channels from start to before stop.

    Raises GraphError for everything else that an index may take.
    """
    source, index = node.args
    assert isinstance(source, fx.Node)
    if source.target in PARTS and isinstance(index, int):
        tensor = next(node for node in source.all_input_nodes if "tensor_meta" in node.meta)
        start = _starts(source, shape(tensor))[index]
        return tensor, start, start + shape(node)[1]
    before = shape(source)
    items = _items(constants(index), len(before))
    if len(items) != len(before) or not all(isinstance(item, slice) for item in items):
        raise _refusal(node, "this index")
    # for one image, which is all that is known here, many a slice takes them all
    if items[0] != slice(None):
        raise _refusal(node, "a part of the batch")
    ranges = [item.indices(size) for item, size in zip(items, before, strict=True)]
    if any(found != (0, size, 1) for found, size in zip(ranges[2:], before[2:], strict=True)):
        raise _refusal(node, "a part of height or width")
    start, stop, step = ranges[1]
    if step != 1 or stop <= start:
        raise _refusal(node, "a step" if step != 1 else "no channel at all")
    return source, start, stop


def _items(index: Any, rank: int) -> list[Any]:
    items = list(index) if isinstance(index, tuple) else [index]
    places = [i for i, item in enumerate(items) if item is Ellipsis]
    if places:
        items[places[0] : places[0] + 1] = [slice(None)] * (rank - len(items) + 1)
    return items + [slice(None)] * (rank - len(items))


def _starts(parts: fx.Node, before: list[int]) -> list[int]:
    dim = constants(parts.kwargs.get("dim", parts.args[2] if len(parts.args) > 2 else 0))
    if dim % len(before) != 1:
        raise _refusal(parts, f"{parts.name} along dimension {dim}")
    sizes = [part.shape[1] for part in parts.meta["tensor_meta"]]
    return [sum(sizes[:i]) for i in range(len(sizes))]


def _refusal(node: fx.Node, what: str) -> GraphError:
    return GraphError(
        f"{within(node)}{node.name}: {what} has no quantized form, only whole channels x[:, a:b] have; replace it "
        "before quantizing"
    )
