"""What has no exact integer form is refused, by the module's name and with what to do; nothing is guessed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.errors import GraphError
from zoo.graph.fold import fold_batchnorm
from zoo.graph.trace import trace
from zoo.models import from_timm


class Body(nn.Module):
    """A layer and a function under test, one level down."""

    def __init__(self, function) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Net(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.stem, self.body, self.fc = nn.Conv2d(3, 4, 3, padding=1), Body(function), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


def twice(x: Tensor) -> Tensor:
    y = x
    x += F.relu(x)
    return x + y


def refused(net: nn.Module, message: str, size: int = 8) -> None:
    torch.manual_seed(0)
    with pytest.raises(GraphError, match=message) as caught:
        fold_batchnorm(trace(net.eval(), torch.randn(1, 3, size, size)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "flow",
    [
        lambda x: x if x.sum() > 0 else x * x,
        lambda x: x[: int(x.max())],
        lambda x: torch.stack([row for row in x]),
        lambda x: x if len(x) == 1 else x + x,
    ],
)
def test_data_dependent_control_flow_is_refused_with_its_module(flow, capfd: pytest.CaptureFixture[str]) -> None:
    refused(
        Net(flow), r"^Net\.body: torch\.fx cannot trace it \(.+\); write data-dependent control flow out of forward"
    )
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: x - x, r"^body: operation 'sub' .*replace it before quantizing"),
        (lambda x: F.softmax(x, 1), r"^body: operation 'softmax' .* has no quantized form \(known: conv, linear"),
        (lambda x: x.permute(0, 2, 3, 1), r"^body: operation 'permute'"),
        (nn.InstanceNorm2d(4), r"^body\.function: InstanceNorm2d has no quantized form"),
        (nn.ConvTranspose2d(4, 4, 3), r"^body\.function: ConvTranspose2d has no quantized form"),
        (nn.Softmax(1), r"^body\.function: Softmax has no quantized form"),
        (nn.MaxPool2d(3, ceil_mode=True), r"^body\.function: ceil_mode adds windows that reach beyond \[8, 8\]"),
        (nn.AvgPool2d(3, 2, ceil_mode=True), r"^body\.function: ceil_mode adds windows"),
        (nn.MaxPool2d(3, dilation=2), r"^body\.function: a max pool with dilation"),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], r"^body: operation 'max_pool2d_with_indices'"),
        (lambda x: F.avg_pool2d(x, 3, padding=1), r"avg_pool2d: an average pool with padding"),
        (lambda x: F.leaky_relu(x, 0.2), r"leaky_relu: negative_slope=0\.2 has no quantized form"),
        (nn.AdaptiveAvgPool2d(3), r"^body\.function: an adaptive pool of 8 x 8 to 3 x 3 has windows of several sizes"),
        (nn.AvgPool2d(2, padding=1), r"^body\.function: an average pool with padding"),
        (nn.AvgPool2d(8, padding=2), r"^body\.function: an average pool with padding"),
        (nn.AvgPool2d(8, divisor_override=3), r"^body\.function: an average pool .*divisor_override"),
        (nn.LeakyReLU(0.2), r"^body\.function: LeakyReLU\(negative_slope=0\.2\) .*default settings"),
        (nn.GELU("tanh"), r"^body\.function: GELU\(approximate='tanh'\)"),
        (nn.ELU(2.0), r"^body\.function: ELU\(alpha=2\.0\)"),
        (lambda x: F.elu(x, 0.5), r"elu: alpha=0\.5 has no quantized form"),
        (lambda x: F.gelu(x, approximate="tanh"), r"gelu: approximate='tanh'"),
        (lambda x: torch.add(x, x, alpha=3), r"add: alpha=3"),
        (lambda x: x * 2, r"mul: arithmetic with the constant 2"),
        (lambda x: F.max_pool2d(x, 2) * x.mean((2, 3)), r"mul: a product of \[1, 4, 4, 4\] and \[1, 4\]"),
        (lambda x: x + F.adaptive_avg_pool2d(x, 1), r"add: a sum of \[1, 4, 8, 8\] and \[1, 4, 1, 1\]"),
        (lambda x: x[:, :, :4], r"^body: getitem: a part of height or width has no quantized form"),
        (lambda x: torch.cat([x, x], 2), r"cat: only concatenation over channels"),
        (lambda x: F.pad(x, (1, 1, 1, 1), value=1.0), r"pad: only zero padding is supported"),
        (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"), r"pad: only zero padding is supported"),
        (lambda x: F.pad(x, (1, 1, 1, 1)), r"pad: zero padding that no convolution follows"),
        (lambda x: F.pad(x, (-1, -1, -1, -1)), r"pad: only non-negative padding"),
        (lambda x: x.mean(1, keepdim=True), r"mean: only the mean over height and width"),
        (lambda x: x.view(1, 16, 4, 4), r"view: a reshape from \[1, 4, 8, 8\] to \[1, 16, 4, 4\] is not a flatten"),
        (nn.BatchNorm2d(4, track_running_stats=False), r"^body\.function: .*without running statistics"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), r"^body\.function: padding mode 'reflect'"),
        (nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), r"^body\.function: its weight is computed"),
    ],
)  # fmt: skip
def test_an_operation_without_integer_form_is_refused(function, message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(GraphError, match=message) as caught:
        trace_anything(function)
    assert "\n" not in str(caught.value)


def trace_anything(function) -> None:
    """The classifier may not fit what the function returns; then it goes without."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body = nn.Conv2d(3, 4, 3, padding=1), Body(function)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(self.stem(x))

    fold_batchnorm(trace(Bare().eval(), torch.randn(1, 3, 8, 8)))


@pytest.mark.parametrize("function", [twice, lambda x: x + torch.relu_(x), lambda x: F.dropout(x, 0.5)])
def test_a_graph_that_computes_something_else_is_refused(function) -> None:
    """In-place changes of a tensor that is read again, and randomness at inference."""
    refused(Net(function), r"^Net: its graph computes something else than the network")


def test_another_type_than_float32_is_refused() -> None:
    with pytest.raises(GraphError, match=r"^Net: stem\.weight is torch\.float64, a network to quantize is float32"):
        trace(Net(torch.relu).double().eval(), torch.randn(1, 3, 8, 8))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("wrap", [torch.jit.script, torch.compile, nn.DataParallel])
def test_a_wrapped_or_compiled_network_is_refused(wrap) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    refused(wrap(net), r"^\w+: wraps or compiles a network, .*; give the network itself")


def test_a_hook_is_refused() -> None:
    net = Net(torch.relu)
    net.stem.register_forward_hook(lambda module, args, out: out * 2)
    refused(net, r"^Net: its graph computes something else than the network; remove forward hooks")


def test_a_flatten_of_two_dimensions_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(2), nn.Linear(64, 2))
    refused(net, r"^1: a reshape from \[1, 4, 8, 8\] to \[1, 4, 64\] is not a flatten")
    refused(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 2)), r"^1: a linear layer takes \[N, features\]")


def test_a_layer_used_twice_is_refused() -> None:
    net = Net(torch.relu)
    net.body.function = lambda x: net.body.layer(net.body.layer(x))
    refused(net, r"^body\.layer: a layer with weights is used twice; give each use a layer of its own")


def test_several_inputs_or_outputs_are_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    class Pair(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    class Scaled(Net):
        def __init__(self) -> None:
            super().__init__(torch.relu)
            self.gamma = nn.Parameter(torch.ones(2))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * self.gamma

    with pytest.raises(GraphError, match=r"several inputs|fails on an input"):
        trace(Two(), torch.zeros(1, 3, 4, 4))
    refused(Pair(), "must return one tensor of logits")
    refused(Scaled(), "gamma: a constant or parameter used outside a layer")


def test_an_image_of_the_wrong_size_is_refused_quietly(capfd: pytest.CaptureFixture[str]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    refused(net, r"^Sequential: it fails on an input of \[1, 3, 8, 8\] \(.*\); give an example of the size")
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_timm_networks_of_other_families_are_refused_with_one_line(name: str) -> None:
    refused(from_timm.build(name, num_classes=2), r"^[\w.]+: ", size=224)


@pytest.mark.parametrize("name", ["conv-1", "code", "forward", "é"])
def test_a_layer_that_no_checkpoint_can_name_is_refused_before_any_work(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict()
            self.parts._modules[name] = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(next(iter(self.parts.values()))(x).mean((2, 3)))

    refused(Named(), rf"'parts.{name}': a checkpoint cannot name a layer so")


def test_a_layer_called_by_keyword_is_the_same_layer() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=self.conv(input=x).mean((2, 3)))

    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 8, 8)
    assert torch.equal(trace(net, x)(x), net(x))
