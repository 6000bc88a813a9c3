"""BatchNorm where no layer stands directly before it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import GraphError
from zoo.graph import ops
from zoo.graph.fold import fold_batchnorm
from zoo.graph.trace import trace


def norm(channels: int) -> nn.BatchNorm2d:
    """Return one that has seen something."""
    made = nn.BatchNorm2d(channels)
    for tensor, low, high in ((made.weight, -2.0, 2.0), (made.bias, -1.0, 1.0), (made.running_var, 0.1, 4.0)):
        nn.init.uniform_(tensor, low, high)
    nn.init.normal_(made.running_mean)
    return made


class Joined(nn.Module):
    """Convolutions of two sizes side by side, as in MixNet, and one BatchNorm for both."""

    def __init__(self, *, read_twice: bool = False) -> None:
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(3, 2, 5, padding=2, bias=False)
        self.bn, self.read_twice = norm(7), read_twice

    def forward(self, x: Tensor) -> Tensor:
        small = self.small(x)
        y = self.bn(torch.cat([small, self.large(x)], 1)).relu()
        return (torch.cat([y, small], 1) if self.read_twice else y).mean((2, 3))


class Ahead(nn.Module):
    """A block that begins with its BatchNorm, as those of He et al. 2016 (Identity Mappings) do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.conv = nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return (x + self.conv(self.bn(x).relu())).mean((2, 3))


def folded(net: nn.Module) -> nn.Module:
    images = torch.randn(3, 3, 8, 8)
    graph = fold_batchnorm(trace(net.eval(), images[:1]))
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    torch.testing.assert_close(graph(images), net(images), rtol=1e-5, atol=1e-6)
    return graph


def test_one_behind_a_concatenation_goes_into_each_layer() -> None:
    torch.manual_seed(0)
    graph = folded(Joined())
    assert {name for name, _ in graph.named_children()} == {"small", "large", "cat", "relu", "mean", "mean_flatten"}


@pytest.mark.parametrize("net", [Joined(read_twice=True), Ahead()], ids=["read_twice", "ahead"])
def test_one_that_no_layer_takes_is_a_depthwise_convolution(net: nn.Module) -> None:
    torch.manual_seed(0)
    layer = folded(net).get_submodule("bn")
    assert isinstance(layer, ops.Conv2d)
    assert layer.groups == layer.in_channels == layer.out_channels and layer.kernel_size == (1, 1)


def test_one_of_features_needs_a_linear_layer() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(GraphError, match=r"^3: batch normalisation of \[N, features\] can only be folded"):
        fold_batchnorm(trace(net.eval(), torch.randn(1, 3, 8, 8)))
