from __future__ import annotations

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
