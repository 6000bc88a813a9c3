"""Channels picked out of a tensor, and what a network works out from the sizes of its tensors."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoo.errors import GraphError
from zoo.graph import ops
from zoo.graph.trace import trace

Function = Callable[[Tensor], Tensor]


class Net(nn.Module):
    """A function behind a convolution of six channels, and mostly a pool behind it."""

    def __init__(self, function: Function, *, pool: bool = True) -> None:
        super().__init__()
        self.stem, self.function, self.pool = nn.Conv2d(3, 6, 3, padding=1), function, pool

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.stem(x))
        return y.mean((2, 3)) if self.pool else y


def traced(function: Function, size: int = 8) -> fx.GraphModule:
    """Return the graph, after comparing it with the network on several images of which none was traced with."""
    torch.manual_seed(0)
    net = Net(function).eval()
    graph = trace(net, torch.randn(1, 3, size, size))
    images = torch.randn(3, 3, size, size)
    torch.testing.assert_close(graph(images), net(images), rtol=0.0, atol=1e-6)  # pools add up in another order
    return graph


def slices(graph: fx.GraphModule) -> list[tuple[int, int]]:
    return [(m.start, m.stop) for m in graph.modules() if isinstance(m, ops.Slice)]


def refused(function: Function, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        trace(Net(function, pool=False).eval(), torch.randn(1, 3, 8, 8))


def second(parts: tuple[Tensor, ...]) -> Tensor:
    return parts[1]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x[:, 2:5], [(2, 5)]),
        (lambda x: x[:, -2:], [(4, 6)]),
        (lambda x: x[:, :4, :, :], [(0, 4)]),
        (lambda x: x[:, 1:3, ...], [(1, 3)]),
        (lambda x: x[:, : x.shape[1] // 3], [(0, 2)]),
        (lambda x: x[:, 4:100], [(4, 6)]),
        (lambda x: torch.cat([x[:, 3:], x[:, :3]], 1), [(3, 6), (0, 3)]),
        (lambda x: second(torch.split(x, 4, 1)), [(4, 6)]),
        (lambda x: second(torch.split(x, [1, 3, 2], dim=1)), [(1, 4)]),
        (lambda x: second(torch.split(x, split_size_or_sections=2, dim=-3)), [(2, 4)]),
        (lambda x: second(x.split(3, dim=1)), [(3, 6)]),
        (lambda x: second(x.split(split_size=2, dim=1)), [(2, 4)]),
        (lambda x: second(x.chunk(3, 1)), [(2, 4)]),
        (lambda x: second(torch.chunk(x, 2, dim=1)), [(3, 6)]),
        (lambda x: second(torch.tensor_split(x, 4, dim=1)), [(2, 4)]),
    ],
)
def test_channels_are_picked(function: Function, expected: list[tuple[int, int]]) -> None:
    assert slices(traced(function)) == expected


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[:, :6],
        lambda x: x[:, :, :, :],
        lambda x: x[...],
        lambda x: x[:, :, 0:8],
        lambda x: x.chunk(1, 1)[0],
        lambda x: sum([x]),
        lambda x: 0.0 + x,
        lambda x: F.adaptive_avg_pool2d(x, (8, None)),
    ],
)
def test_what_takes_everything_is_the_tensor_itself(function: Function) -> None:
    graph = traced(function)
    assert [type(m).__name__ for m in graph.children()] == ["Conv2d", "GlobalMean", "Flatten"]


@pytest.mark.parametrize(
    ("function", "what"),
    [
        (lambda x: x[0], "this index"),
        (lambda x: x[:1], "a part of the batch"),
        (lambda x: x[:, None, 1:3], "this index"),
        (lambda x: x[:, [0, 1]], "this index"),
        (lambda x: x[:, ::2], "a step"),
        (lambda x: x[:, 4:4], "no channel at all"),
        (lambda x: x[:, :, 2:], "a part of height or width"),
        (lambda x: x[..., 1:], "a part of height or width"),
        (lambda x: second(x.split(4, dim=2)), "split along dimension 2"),
        (lambda x: x.split(4)[0], "split along dimension 0"),
    ],
)
def test_any_other_index_is_refused(function: Function, what: str) -> None:
    refused(function, rf"\w+: {what} has no quantized form, only whole channels x\[:, a:b\] have")


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_part_that_is_written_is_refused(device: str) -> None:
    """Nothing of it is left in the values, and on no device nothing would notice."""

    def write(x: Tensor) -> Tensor:
        x[:, 0] = 0.0
        return x

    with torch.device(device):
        refused(write, "item assignment")


@pytest.mark.parametrize(
    "function",
    [
        lambda x: F.avg_pool2d(x, x.shape[2:]),
        lambda x: F.avg_pool2d(x, (x.size(2), x.size()[3])),
        lambda x: F.avg_pool2d(x, kernel_size=x.shape[-1]),
        lambda x: F.adaptive_avg_pool2d(x, x.dim() - 3),
    ],
)
def test_sizes_are_those_of_the_example(function: Function) -> None:
    graph = traced(function)
    assert [type(m).__name__ for m in graph.children()] == ["Conv2d", "GlobalMean", "GlobalMean", "Flatten"]


def test_a_value_that_depends_on_the_picture_is_no_size() -> None:
    refused(lambda x: F.avg_pool2d(x, 1 + 0 * x.argmax().item()), "operation 'argmax'")
    refused(lambda x: F.avg_pool2d(x, 1 + F.relu(F.adaptive_avg_pool2d(x, 1)).__len__()), "'len'|__len__")


@pytest.mark.parametrize(("wanted", "kernel"), [(4, (2, 2)), ((2, 8), (4, 1)), ((None, 2), (1, 4))])
def test_an_adaptive_pool_of_equal_windows_is_an_average_pool(wanted, kernel: tuple[int, int]) -> None:
    for function in (nn.AdaptiveAvgPool2d(wanted), lambda x: F.adaptive_avg_pool2d(x, wanted)):
        pools = [m for m in traced(function).modules() if isinstance(m, nn.AvgPool2d)]
        assert [(m.kernel_size, m.stride) for m in pools] == [(kernel, kernel)]


def test_a_global_pool_may_be_a_module_or_a_function() -> None:
    for function in (nn.AdaptiveAvgPool2d(1), lambda x: F.adaptive_avg_pool2d(x, (1, 1))):
        assert sum(isinstance(m, ops.GlobalMean) for m in traced(function).modules()) == 2


@pytest.mark.parametrize("wanted", [3, (2, 5), 16])
def test_an_adaptive_pool_of_unequal_windows_is_refused(wanted) -> None:
    with pytest.raises(GraphError, match="windows of several sizes, which have no integer form; take images of a size"):
        traced(nn.AdaptiveAvgPool2d(wanted))


def test_a_size_where_a_tensor_belongs_is_refused() -> None:
    refused(lambda x: x + x.shape[2], "arithmetic with the constant 8 has no quantized form")
    refused(lambda x: x.reshape(1, 1, x.shape[1] * x.shape[2] * x.shape[3]), r"to \[1, 1, 384\] is not a flatten")
