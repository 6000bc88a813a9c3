from __future__ import annotations

import copy

import pytest
import torch

import zoo
from zoo.integer.exact import Exact
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


def test_autocast_changes_no_integer() -> None:
    network = zoo.load("resnet8_fashion_w4a4", integer=True)
    x = pictures(network)
    plain = network(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x), plain)
