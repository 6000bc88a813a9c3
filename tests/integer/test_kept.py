"""Exact in the types that a network was built with, or refused: no conversion makes other integers of it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.integer.programs import module, record
from tests.integer.test_exact import pictures
from tests.integer.test_network import SEMANTICS, every_op
from zoo.errors import QuantError
from zoo.integer.exact import Exact, follow_integers
from zoo.integer.layers import build_integer
from zoo.integer.simulated import build_simulated
from zoo.preprocess import Preprocess

NAME = "resnet8_fashion_w4a4"
Convert = Callable[[nn.Module], nn.Module]
CONVERSIONS: dict[str, Convert] = {
    "half": lambda net: net.half(),
    "bfloat16": lambda net: net.bfloat16(),
    "double": lambda net: net.double(),
    "float": lambda net: net.float(),
    "to": lambda net: net.to("cpu", torch.float16),
    "type": lambda net: net.type(torch.float64),
}


@contextmanager
def default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def held(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_buffers(remove_duplicate=False)) | dict(net.named_parameters())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(t.dtype == b[n].dtype and torch.equal(t, b[n]) for n, t in a.items())


@pytest.mark.parametrize("way", CONVERSIONS)
def test_another_type_is_refused_and_changes_nothing(way: str) -> None:
    network = zoo.load(NAME, integer=True)
    x, before = pictures(network), copy.deepcopy(held(network))
    logits = network(x)
    for part in (network, network.graph_module, nn.Sequential(network)):
        with pytest.raises(QuantError, match=r"an integer network in torch\.\w+ would compute other integers") as error:
            CONVERSIONS[way](part)
        assert "\n" not in str(error.value)
    assert same(held(network), before) and torch.equal(network(x), logits)


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_every_kind_of_layer_that_holds_numbers_is_kept(semantics: str) -> None:
    net = build_integer(every_op(8, "unsigned", 0).program, semantics)
    for name, layer in net.named_children():
        numbers = {t.dtype for t in layer.buffers() if t.is_floating_point()}
        for way, dtype in (("half", torch.half), ("double", torch.double), ("float", torch.float)):
            if numbers - {dtype}:
                with pytest.raises(QuantError, match=rf"^Int\w+\..*{dtype}"):
                    CONVERSIONS[way](layer)
            else:
                CONVERSIONS[way](layer)
        assert {t.dtype for t in layer.buffers() if t.is_floating_point()} == numbers, name


def test_devices_copies_and_layouts_are_taken() -> None:
    network = zoo.load(NAME, integer=True)
    x = pictures(network)
    logits = network(x)
    for way in (network.cpu(), network.to("cpu"), network.to(x.device), network.to(memory_format=torch.channels_last),
                copy.deepcopy(network), network.share_memory()):  # fmt: skip
        assert torch.equal(way(x), logits)
    types = {name: tensor.dtype for name, tensor in held(network).items()}
    away = copy.deepcopy(network).to("meta")
    assert {name: tensor.dtype for name, tensor in held(away).items()} == types
    assert all(tensor.device.type == "meta" for tensor in held(away).values())


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_a_fake_quantized_network_of_another_type_is_one_that_was_changed(dtype: torch.dtype) -> None:
    network = zoo.load(NAME)
    x, before = pictures(network), copy.deepcopy(held(network))
    logits = network(x)
    network.to(dtype)
    layers = [m for m in network.modules() if isinstance(m, Exact)]
    assert layers and all(m.changed() for m in layers)
    network.to(torch.float32)
    # what was exact as the other type is the network's own again, the rest still is another's
    lossless = dtype == torch.double
    assert any(m.changed() for m in layers) != lossless
    with torch.no_grad():
        assert torch.equal(network(x), logits) == lossless
    origins = {name: tensor for name, tensor in held(network).items() if ".origin." in name}
    assert origins and same(origins, {name: before[name] for name in origins})


def test_a_fake_quantized_network_goes_to_another_device_whole() -> None:
    network = zoo.load(NAME).to("meta", torch.bfloat16)
    assert all(tensor.device.type == "meta" for tensor in held(network).values())


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
@pytest.mark.parametrize("semantics", SEMANTICS)
def test_the_default_type_changes_no_number(dtype: torch.dtype, semantics: str) -> None:
    for bits in (8, 16):
        builder = every_op(bits, "signed", 0)
        program, image = builder.program, builder.image()
        nets = (
            build_integer(program, semantics),
            follow_integers(build_simulated(program, semantics), program, semantics),
        )
        values = [record(net, image) for net in nets]
        with default(dtype):
            others = (
                build_integer(program, semantics),
                follow_integers(build_simulated(program, semantics), program, semantics),
            )
        for net, other, found in zip(nets, others, values, strict=True):
            assert same(held(net), held(other))
            assert same(found, record(other, image))


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_pixels_of_another_type_are_those_of_float32(dtype: torch.dtype) -> None:
    builder = every_op(8, "unsigned", 1)
    net, image = build_integer(builder.program, "tflite"), builder.image().to(dtype)
    wanted, found = record(net, image.float()), record(net, image)
    assert same(found, wanted) and module(net, "x").inverse.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.half, torch.bfloat16, torch.double])
def test_preprocessing_is_float32_whatever_the_default(dtype: torch.dtype) -> None:
    made = Preprocess((4, 4), (125.3, 123.0, 113.9), (63.0, 62.1, 66.7))
    pixels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    wanted = made.normalize(pixels)
    with default(dtype):
        for given in (pixels, torch.from_numpy(pixels)):
            found = made.normalize(given)
            assert found.dtype == torch.float32 and torch.equal(found, wanted)
