"""timm networks of many kinds, whole: quantized, calibrated, integerized, saved and read back."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from tests.integer.programs import module, record
from tests.networks import config
from tests.timm_networks import NETWORKS, SIZE, images, network
from zoo.artifact import checkpoint
from zoo.context import Context, Images
from zoo.graph.trace import trace
from zoo.integer.layers import IntLayer, limits
from zoo.integer.program import Program, TensorFormat
from zoo.integer.simulated import build_simulated
from zoo.steps.calibrate import Calibrate
from zoo.steps.fold_batchnorm import FoldBatchnorm
from zoo.steps.integerize import Integerize
from zoo.steps.quantize import Quantize

pytestmark = pytest.mark.slow


@cache
def quantized(name: str) -> tuple[fx.GraphModule, Program, Tensor, Tensor]:
    """Return the integer network with 4-bit weights and 8-bit activations, its Program, two images, float logits."""
    pictures = images(16)
    parent = trace(network(name), pictures[:1])
    ctx = Context(config(4, 8), Images(pictures), parent)
    net = parent
    for step in (FoldBatchnorm(), Quantize(), Calibrate(weight="minmax", act="minmax"), Integerize()):
        net = step(net, ctx)
    with torch.no_grad():
        return net, net.meta["program"], pictures[:2], parent(pictures[:2])


def exact(layer: Any, x: Tensor) -> Tensor:
    """Return the layer's accumulators by float64 sums, exact below 2^53 whatever the kernel's order."""
    weight, x = layer.weight.double(), x.double()
    if x.dim() == 2:
        return torch.nn.functional.linear(x, weight, layer.bias)
    if layer.extra is not None:
        x = torch.nn.functional.pad(x, layer.extra)
    return torch.nn.functional.conv2d(
        x, weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups
    )  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_accumulators_are_exact_integers(name: str) -> None:
    net, program, pictures, _ = quantized(name)
    values = record(net, pictures)
    layers = [n for n in program.nodes if n.op in ("conv2d", "linear")]
    assert len(layers) > 15
    with torch.no_grad():
        for node in layers:
            layer: IntLayer = module(net, node.name)
            x = values[node.inputs[0]]
            found = layer.accumulate(x).double()
            assert torch.equal(found, exact(layer, x)), node.name
            assert torch.equal(found, found.round()) and float(found.abs().max()) <= layer.bound < 2**31, node.name


@pytest.mark.parametrize("name", NETWORKS)
def test_codes_are_integers_in_range_and_alive(name: str) -> None:
    net, program, pictures, _ = quantized(name)
    values = record(net, pictures)
    for node in program.nodes:
        low, high = limits(node, program.format_of(node.name))
        codes = values[node.name]
        assert torch.equal(codes, codes.round()), node.name
        assert low <= float(codes.min()) and float(codes.max()) <= high, node.name
        assert len(codes.unique()) > 4, f"{node.name}: the random network is degenerate"


@pytest.mark.parametrize("name", NETWORKS)
def test_each_layer_is_within_one_step_of_its_simulation(name: str) -> None:
    net, program, pictures, _ = quantized(name)
    values, simulated = record(net, pictures), build_simulated(program, "tflite")
    for node in program.nodes:
        inputs = [values[i] * program.format_of(i).scale for i in node.inputs] or [pictures]
        with torch.no_grad():
            real = module(simulated, node.name)(*inputs)
        out: TensorFormat = program.format_of(node.name)
        # 16-bit logits: float32 holds about 7 digits of a value that reaches 32767 steps
        assert float((real / out.scale - values[node.name]).abs().max()) <= 1.0 + 1e-5 * out.reach, node.name


@pytest.mark.parametrize("name", NETWORKS)
def test_saved_and_read_back_logits_are_bit_equal(name: str, tmp_path: Path) -> None:
    net, program, pictures, _ = quantized(name)
    fields = {
        "name": name, "architecture": name, "license": "Apache-2.0", "semantics": "tflite", "num_classes": 10,
        "labels": [str(i) for i in range(10)], "quantization_config": {}, "provenance": {},
        "preprocess": {"size": [SIZE, SIZE], "mean": [0.0] * 3, "std": [1.0] * 3, "resize": None,
                       "interpolation": "bilinear"},
    }  # fmt: skip
    checkpoint.save(tmp_path / "net", program, fields, recipe="name: x\n", metrics={}, card="")
    found = checkpoint.read(tmp_path / "net")
    with torch.no_grad():
        assert torch.equal(found.network(integer=True)(pictures), net(pictures))
        assert torch.equal(found.network()(pictures), net(pictures))
