"""Layers under bfloat16 autocast give the same on processors that multiply bfloat16 and on those that do not."""

from __future__ import annotations

import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.networks import small_resnet
from zoo.graph import bfloat16, ops
from zoo.graph.trace import trace

CPUINFO = Path("/proc/cpuinfo")
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "conv": (lambda: ops.Conv2d(8, 6, (3, 3), pad=(1, 1, 1, 1)), (3, 8, 7, 7)),
    "strided": (lambda: ops.Conv2d(8, 6, (3, 3), stride=(2, 2), pad=(0, 1, 0, 1)), (3, 8, 7, 7)),
    "pointwise": (lambda: ops.Conv2d(8, 6, (1, 1), bias=False), (3, 8, 7, 7)),
    "depthwise": (lambda: ops.Conv2d(8, 8, (3, 3), pad=(1, 1, 1, 1), groups=8), (3, 8, 7, 7)),
    "linear": (lambda: ops.Linear.of(nn.Linear(40, 6)), (5, 40)),
    "unbiased": (lambda: ops.Linear.of(nn.Linear(40, 6, bias=False)), (5, 40)),
}


def torchs(layer: nn.Module, x: Tensor) -> Tensor:
    """Return what PyTorch's own function makes of these operands."""
    if isinstance(layer, ops.Linear):
        return F.linear(x, layer.weight, layer.bias)
    assert isinstance(layer, ops.Conv2d)
    x = F.pad(x, layer.extra_pad) if layer.extra_pad else x
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


def learned(layer: nn.Module, multiply: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> list[Tensor]:
    """Return the output under autocast and the gradients of the operands."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = multiply(x)
    assert y.dtype == torch.bfloat16
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad.to(y.dtype))]


def drawn(name: str, *, whole: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a layer, its input and the gradient of its output: all integers, or fractions."""
    generator = torch.Generator().manual_seed(0)

    def draw(shape: torch.Size | tuple[int, ...]) -> Tensor:
        if whole:
            return torch.randint(-99, 100, shape, generator=generator).float()
        return torch.randn(shape, generator=generator)

    make, shape = LAYERS[name]
    layer = make()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(draw(p.shape))
        return layer, draw(shape), draw(layer(draw(shape)).shape)


@pytest.mark.parametrize("name", LAYERS)
def test_sums_are_rounded_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of integers do not depend on their order: float64 gives the bits that are asked for."""
    monkeypatch.setattr(bfloat16, "MULTIPLIED", False)
    layer, x, grad = drawn(name, whole=True)
    ours = learned(layer, layer, x, grad)
    layer.double()
    x = x.double().requires_grad_()
    y = torchs(layer, x)
    exact = [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], grad.double())]
    assert len(ours) == len(exact) >= 3 and exact[0].abs().max() > 256  # beyond what bfloat16 holds without rounding
    for found, wanted in zip(ours, exact, strict=True):
        assert torch.equal(found.float(), wanted.bfloat16().float())


@pytest.mark.parametrize("name", LAYERS)
def test_sums_of_fractions_are_torchs_but_for_their_order(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x, grad = drawn(name, whole=False)
    theirs = learned(layer, lambda x: torchs(layer, x), x, grad)
    monkeypatch.setattr(bfloat16, "MULTIPLIED", False)
    for found, wanted in zip(learned(layer, layer, x, grad), theirs, strict=True):
        assert found.dtype == wanted.dtype
        # a digit of bfloat16, of which PyTorch's own kernels lose one more where they imitate it
        assert (found.float() - wanted.float()).abs().max() <= 2.0**-6 * wanted.float().abs().max()


def test_operands_are_rounded_before_they_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "MULTIPLIED", False)
    fine = torch.full((1, 1), 1.0 + 2.0**-9)
    with torch.autocast("cpu", torch.bfloat16):
        # 1 + 2^-9 is 1 in bfloat16; unrounded, 192 such products would be 192.4 and round up to 193
        y = ops.linear(fine.expand(1, 192), torch.ones(1, 192), None)
    assert float(y) == 192.0


def test_without_autocast_and_in_half_precision_it_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bfloat16, "MULTIPLIED", False)
    torch.manual_seed(0)
    plain, x = nn.Linear(40, 6), torch.randn(5, 40)
    before = torch.random.get_rng_state()
    layer = ops.Linear.of(plain)
    assert torch.equal(torch.random.get_rng_state(), before) and layer.weight is plain.weight
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    with torch.autocast("cpu", torch.float16):
        assert layer(x).dtype == torch.float16 and torch.equal(layer(x), torchs(layer, x))


def test_a_traced_network_multiplies_so_in_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph has no convolution and no linear layer but ours, which share their weights with the network's."""
    torch.manual_seed(0)
    net = small_resnet().eval()
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    graph = trace(net, x[:1])
    layers = [m for m in graph.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert {type(m) for m in layers} == {ops.Conv2d, ops.Linear}
    assert {id(m.weight) for m in layers} <= {id(p) for p in net.parameters()}
    wanted = graph(x)
    calls = []
    summed = bfloat16.summed_in_float32
    monkeypatch.setattr(bfloat16, "summed_in_float32", lambda *operands: calls.append(operands) or summed(*operands))
    monkeypatch.setattr(bfloat16, "MULTIPLIED", False)
    with torch.autocast("cpu", torch.bfloat16):
        y = graph(x)
    assert len(calls) == len(layers) and y.dtype == torch.bfloat16
    assert (y.float() - wanted).abs().max() <= 0.05 * wanted.abs().max()


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="reads the flags of x86 on Linux")
def test_which_processors_multiply_bfloat16() -> None:
    flags = set(next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split())
    can = {"avx512bw", "avx512vl", "avx512dq"} <= flags or "avx_ne_convert" in flags
    assert bfloat16.MULTIPLIED == bfloat16.multiplied() == can
