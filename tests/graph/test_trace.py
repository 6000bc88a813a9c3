from __future__ import annotations

import pytest
import timm.layers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from tests.timm_networks import NETWORKS, SIZE, images, network
from zoo.graph import ops
from zoo.graph.fold import fold_batchnorm
from zoo.graph.trace import trace
from zoo.models import mobilenetv1, mobilenetv2_cifar, resnet8, resnet_cifar, vgg9

VOCABULARY = (
    nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, ops.Add, ops.Mul,
    ops.Cat, ops.Slice, ops.GlobalMean, *ops.ACTIVATIONS.values(),
)  # fmt: skip


class Around(nn.Module):
    """A convolution, then one function under test, then a classifier."""

    def __init__(self, function) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.function = function
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(self.conv(x)).mean((2, 3)))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [SIZE, 57])
def test_trace_is_bit_equal(name: str, size: int) -> None:
    """An odd size too: SAME padding is uneven at other layers there."""
    net, x = network(name), images(2, size=size)
    graph = trace(net, x[:1])
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))
    assert {n.op for n in graph.graph.nodes} == {"placeholder", "call_module", "output"}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            assert isinstance(graph.get_submodule(node.target), VOCABULARY), node.target


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_batchnorm_changes_only_rounding(name: str) -> None:
    net, x = network(name), images(2)
    graph = trace(net, x[:1])
    before = {k: v.clone() for k, v in graph.state_dict().items()}
    folded = fold_batchnorm(graph)
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        logits, wanted = folded(x), graph(x)
    assert float(wanted.std()) > 1e-3
    assert float((logits - wanted).abs().max()) <= 1e-4 * max(1.0, float(wanted.abs().max()))
    assert all(torch.equal(v, before[k]) for k, v in graph.state_dict().items())


@pytest.mark.parametrize(
    ("build", "image"),
    [
        (resnet8.build, (3, 32, 32)),
        (vgg9.build, (3, 32, 32)),
        (lambda: resnet_cifar.build(20), (3, 32, 32)),
        (lambda: mobilenetv1.build(0.25), (3, 64, 64)),
        (lambda: mobilenetv1.build(0.25, 10, "cifar"), (3, 32, 32)),
        (mobilenetv2_cifar.build, (3, 32, 32)),
    ],
)
def test_own_networks_trace_and_fold(build, image: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net, x = build().eval(), torch.randn(2, *image)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    graph = trace(net, x[:1])
    with torch.no_grad():
        wanted = net(x)
        assert torch.equal(graph(x), wanted)
        torch.testing.assert_close(fold_batchnorm(graph)(x), wanted, rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(st.integers(5, 20), st.integers(5, 20), st.sampled_from([1, 2, 3, 5]), st.sampled_from([1, 2, 3]))
def test_same_padding_is_that_of_tensorflow(height: int, width: int, kernel: int, stride: int) -> None:
    def total(size: int) -> int:  # the rule as the notes on padding of TensorFlow's tf.nn state it
        return max(kernel - (stride if size % stride == 0 else size % stride), 0)

    net = nn.Sequential(timm.layers.Conv2dSame(3, 4, kernel, stride))
    graph = trace(nn.Sequential(*net, nn.AdaptiveAvgPool2d(1), nn.Flatten(1)), torch.zeros(1, 3, height, width))
    conv = next(m for m in graph.children() if isinstance(m, ops.Conv2d))
    left, top = total(width) // 2, total(height) // 2
    assert conv.pad == (left, total(width) - left, top, total(height) - top)
    x = torch.randn(1, 3, height, width)
    assert conv(x).shape[2:] == (-(-height // stride), -(-width // stride))
    with torch.no_grad():
        assert torch.equal(conv(x), net(x))


@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_torchs_own_same_padding(dilation: int) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, (5, 3), padding="same", dilation=dilation), nn.ReLU(), nn.Flatten(1)).eval()
    x = torch.randn(1, 3, 9, 8)
    with torch.no_grad():
        torch.testing.assert_close(trace(net, x)(x), net(x))


def test_a_fixed_pad_becomes_part_of_each_convolution_that_reads_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.pad(x, (1, 2, 0, 3))
            return torch.cat([self.a(y).mean((2, 3)), self.b(y).mean((2, 3))], 1)

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x)
    assert graph.a.pad == (1, 2, 0, 3) and graph.b.pad == (2, 3, 1, 4)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), net(x))


@pytest.mark.parametrize(
    "function",
    [
        torch.relu, F.relu6, F.hardswish, F.hardsigmoid, torch.sigmoid, F.silu, F.gelu, torch.tanh, F.elu,
        lambda x: x.relu(), lambda x: F.relu(input=x, inplace=True), lambda x: torch.add(x, other=x.sigmoid(), alpha=1),
        lambda x: x * x.sigmoid(), lambda x: x * x.mean((2, 3), keepdim=True), lambda x: F.dropout(x, training=False),
        lambda x: F.adaptive_avg_pool2d(x, output_size=1), lambda x: x.float().contiguous(),
        nn.LeakyReLU(), nn.GELU(), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, 1), nn.Dropout(0.9), F.leaky_relu,
        nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2, ceil_mode=True), nn.MaxPool2d((2, 4), (2, 1)),
        lambda x: F.max_pool2d(x, 3, stride=2, padding=(1, 0)), lambda x: torch.max_pool2d(x, 2),
        lambda x: F.avg_pool2d(x, 2), lambda x: F.avg_pool2d(x, kernel_size=3, stride=1, ceil_mode=True),
    ],
)  # fmt: skip
def test_operations_keep_their_meaning(function) -> None:
    torch.manual_seed(0)
    net, x = Around(function).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x[:1])
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))


def test_an_average_over_the_whole_map_is_a_global_mean() -> None:
    net, x = Around(nn.AvgPool2d(8)).eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x[:1])
    assert isinstance(graph.function, ops.GlobalMean)
    with torch.no_grad():
        torch.testing.assert_close(graph(x), net(x))


class OwnConv(nn.Conv2d):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding="same")


class OwnLinear(nn.Linear):
    pass


class OwnNorm(nn.BatchNorm2d):
    pass


def test_a_class_of_ones_own_that_sets_up_a_layer_is_that_layer() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(OwnConv(3, 4), OwnNorm(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), OwnLinear(4, 2))
    with torch.no_grad():
        net[1].running_mean.uniform_(-1, 1)
    x = torch.randn(2, 3, 8, 8)
    graph = trace(net.eval(), x[:1])
    folded = fold_batchnorm(graph)
    assert [type(m) for m in graph.modules() if isinstance(m, nn.Conv2d | nn.Linear)] == [ops.Conv2d, ops.Linear]
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))
        torch.testing.assert_close(folded(x), net(x))


def test_a_head_that_only_a_training_uses_is_left_out() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
            self.aux, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
            x = torch.relu(self.conv(x))
            aux, y = F.softmax(self.norm(self.aux(x)), 1), self.fc(x.mean((2, 3)))
            return (y, aux) if self.training else y

    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    graph = trace(net, x[:1])
    assert {name for name, m in graph.named_modules() if next(m.parameters(), None) is not None} == {"", "conv", "fc"}
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))


def test_concatenation_and_shared_activation() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.relu, self.fc = (
                nn.Conv2d(3, 4, 1),
                nn.Conv2d(4, 4, 1),
                nn.ReLU(inplace=True),
                nn.Linear(8, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            y = self.relu(self.a(x))
            return self.fc(torch.cat(dim=1, tensors=[y, self.relu(self.b(y))]).mean((-1, -2)))

    net, x = Net().eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(trace(net, x[:1])(x), net(x))


def test_a_module_may_be_called_like_a_function() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add = nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

        def forward(self, x: Tensor) -> Tensor:
            return self.add(x + x)

    net, x = Net().eval(), torch.randn(2, 3, 4, 4)
    graph = trace(net, x[:1])
    assert isinstance(graph.get_submodule("add.0"), ops.Conv2d)
    assert not any(isinstance(m, ops.Add) and list(m.children()) for m in graph.modules())
    with torch.no_grad():
        assert torch.equal(graph(x), net(x))


def test_tracing_shares_weights_and_leaves_the_network_alone() -> None:
    net, x = Around(torch.relu).eval(), torch.randn(1, 3, 8, 8)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    graph = trace(net, x)
    assert graph.conv.weight is net.conv.weight
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
