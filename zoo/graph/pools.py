"""Pools of a float network as those of the vocabulary: whole windows, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from zoo.errors import GraphError
from zoo.graph import ops

# the arguments of the functions, in their order
MAX = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
AVERAGE = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")


def called(kind: type[nn.Module], given: dict[str, Any]) -> nn.Module:
    """Return the module that computes what a function computes with these arguments."""
    # torch.max_pool2d says () where the stride is the kernel's
    return kind(**{k: v for k, v in given.items() if k != "input" and v != ()})


def pool(m: nn.Module, before: Sequence[int], after: Sequence[int], name: str) -> nn.Module:
    """Return a MaxPool2d or AvgPool2d of ``before`` [N, C, H, W], which gives ``after``, in the vocabulary.

    An average over all positions is a global mean. Raises GraphError for what has no integer form.
    """
    if isinstance(m, nn.MaxPool2d):
        if _pair(m.dilation) != (1, 1) or m.return_indices:
            raise GraphError(f"{name}: a max pool with dilation or return_indices has no integer form; leave them out")
        return nn.MaxPool2d(m.kernel_size, m.stride, m.padding) if _rounds_up(m, before, after, name) else m
    assert isinstance(m, nn.AvgPool2d)
    if _pair(m.padding) != (0, 0) or m.divisor_override is not None:
        raise GraphError(
            f"{name}: an average pool with padding or divisor_override has no integer form; leave them out"
        )
    if _pair(m.kernel_size) == tuple(before[2:]):
        return ops.GlobalMean()
    return nn.AvgPool2d(m.kernel_size, m.stride) if _rounds_up(m, before, after, name) else m


def adaptive(wanted: Any, before: Sequence[int], name: str) -> nn.Module | None:
    """Return the pool of ``before`` [N, C, H, W] that leaves ``wanted`` windows; None where each is one position.

    Raises GraphError where the windows would not be equal and side by side.
    """
    pair = wanted if isinstance(wanted, tuple | list) else (wanted, wanted)
    height, width = (n if k is None else k for k, n in zip(pair, before[2:], strict=True))
    if before[2] % height or before[3] % width:
        raise GraphError(
            f"{name}: an adaptive pool of {before[2]} x {before[3]} to {height} x {width} has windows of several "
            "sizes, which have no integer form; take images of a size that it divides"
        )
    kernel = (before[2] // height, before[3] // width)
    if (height, width) == (1, 1):
        return ops.GlobalMean()
    return nn.AvgPool2d(kernel, kernel) if kernel != (1, 1) else None


def _rounds_up(m: nn.MaxPool2d | nn.AvgPool2d, before: Sequence[int], after: Sequence[int], name: str) -> bool:
    """Tell whether there is a ``ceil_mode`` that changes nothing; the smaller windows that it else adds are refused."""
    sizes = zip(before[2:], _pair(m.kernel_size), _pair(m.stride), _pair(m.padding), strict=True)
    if m.ceil_mode and [(n + 2 * p - k) // s + 1 for n, k, s, p in sizes] != list(after[2:]):
        raise GraphError(
            f"{name}: ceil_mode adds windows that reach beyond {list(before[2:])}, which have no integer form; leave "
            "ceil_mode out, or take images of another size"
        )
    return m.ceil_mode


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])
