from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

import zoo
from zoo.integer import layers
from zoo.integer.exact import Exact
from zoo.integer.precision import float32_is_kept
from zoo.integer.simulated import build_simulated
from zoo.quant.layers import QWeighted

NAMES = [name for name in zoo.list_checkpoints() if name.startswith(("resnet8_fashion", "resnet8_w"))]


def pictures(network: torch.nn.Module, count: int = 16) -> torch.Tensor:
    height, width = network.preprocess.size
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (count, height, width, network.preprocess.channels), generator=generator)
    return network.preprocess.batch(noise.to(torch.uint8).numpy())


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_simulates_its_integers_to_the_bit(name: str) -> None:
    network = zoo.load(name)
    x = pictures(network)
    assert torch.equal(network(x), zoo.load(name, integer=True)(x))
    assert all(isinstance(m, Exact) for m in network.modules() if isinstance(m, QWeighted))


def test_gradients_and_changed_weights_bring_the_float_arithmetic_back() -> None:
    network = zoo.load("resnet8_fashion_w4a4")
    x = pictures(network)
    before = network(x)
    real = build_simulated(network.program, "tflite")(x)
    layer = next(m for m in network.modules() if isinstance(m, QWeighted))
    layer.weight.requires_grad_(True)
    logits = network(x)
    assert torch.equal(logits.detach(), real) and not torch.equal(real, before)
    logits.square().mean().backward()
    assert layer.weight.grad is not None and float(layer.weight.grad.abs().sum()) > 0
    with torch.no_grad():
        assert torch.equal(network(x), before)
        layer.weight.mul_(-1.0)
        assert not torch.allclose(network(x), before)


@pytest.mark.parametrize("way", ["multiplied", "replaced", "another"])
def test_a_change_is_noticed_whichever_way_it_was_made(way: str) -> None:
    network = zoo.load("resnet8_fashion_w4a4")
    x = pictures(network)
    before = network(x)
    layer = next(m for m in network.modules() if isinstance(m, QWeighted))
    if way == "multiplied":
        layer.weight.data.mul_(0.0)
    elif way == "replaced":
        layer.weight.data = torch.zeros_like(layer.weight)
    else:
        layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight))
    with torch.no_grad():
        assert not torch.allclose(network(x), before)


def test_a_copy_is_as_exact_as_its_original() -> None:
    network = zoo.load("resnet8_fashion_w4a4")
    x = pictures(network)
    real = build_simulated(network.program, "tflite")(x)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(network)(x), network(x)) and not torch.equal(network(x), real)


@pytest.fixture
def coarse(request: pytest.FixtureRequest) -> Iterator[None]:
    """Let products of float32 be less exact, in one of the ways that PyTorch has."""
    if request.param == "older":
        torch.set_float32_matmul_precision("medium")
    elif hasattr(torch.backends.mkldnn, "conv"):
        getattr(torch.backends.mkldnn, request.param).fp32_precision = "bf16"
    else:
        pytest.skip("this torch has the older setting only")
    yield
    if request.param == "older":
        torch.set_float32_matmul_precision("highest")
    else:
        getattr(torch.backends.mkldnn, request.param).fp32_precision = "none"


@pytest.mark.parametrize("coarse", ["older", "matmul", "conv"], indirect=True)
@pytest.mark.usefixtures("coarse")
def test_where_float32_may_lose_digits_integers_are_summed_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {"conv2d": set(), "linear": set()}

    def watched(name: str) -> Callable[..., torch.Tensor]:
        plain = getattr(layers.F, name)

        def call(x: torch.Tensor, weight: torch.Tensor, *rest: Any) -> torch.Tensor:
            seen[name] |= {x.dtype, weight.dtype}
            return plain(x, weight, *rest)

        return call

    network = zoo.load("resnet8_fashion_w4a4", integer=True)
    x = pictures(network)
    for name in seen:
        monkeypatch.setattr(layers.F, name, watched(name))
    lossy = network(x)
    assert seen == {"conv2d": {torch.float64}, "linear": {torch.float64}}
    monkeypatch.setattr(layers, "float32_is_kept", lambda device: True)
    for types in seen.values():
        types.clear()
    # this processor may or may not take the offer; float64 does not depend on it
    network(x)
    assert seen == {"conv2d": {torch.float32}, "linear": {torch.float32}}
    monkeypatch.undo()
    torch.set_float32_matmul_precision("highest")
    assert torch.equal(lossy, zoo.load("resnet8_fashion_w4a4")(x))


def test_float32_is_kept_unless_told_otherwise() -> None:
    assert float32_is_kept(torch.device("cpu")) and not float32_is_kept(torch.device("cuda"))


def test_autocast_changes_no_integer() -> None:
    network = zoo.load("resnet8_fashion_w4a4", integer=True)
    x = pictures(network)
    plain = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), plain)
