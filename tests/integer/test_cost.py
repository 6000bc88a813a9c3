"""Multiply-accumulates and live activations, against counts made by hand and by hooks on the float network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from zoo.artifact import checkpoint
from zoo.integer.cost import activation_bytes, macs
from zoo.integer.program import Node, Program, TensorFormat, WeightFormat
from zoo.models import mobilenetv1, resnet8
from zoo.paths import results_dir
from zoo.results import Record, read_records


def codes(bits: int) -> TensorFormat:
    return TensorFormat(bits, False, 0, 2**bits - 1, 0.5, 0)


def conv(name: str, source: str, out: int, weight: int = 4) -> Node:
    attrs = {"stride": [1, 1], "pad": [1, 1, 1, 1], "dilation": [1, 1], "groups": 1}
    return Node(name, "conv2d", (source,), attrs, codes(out), WeightFormat(weight, True, True))


def residual(middle: int) -> Program:
    """Two convolutions of 2 channels on 4x4 pixels, the first one's output added to the second one's."""
    nodes = [
        Node("x", "input", (), {}, codes(8)),
        conv("a", "x", 8),
        Node("r", "requantize", ("a",), {}, codes(middle)),
        conv("b", "r", 8),
        Node("sum", "add", ("a", "b"), {}, codes(8)),
        Node("pool", "mean", ("sum",), {}, codes(8)),
        Node("flat", "flatten", ("pool",)),
        Node("fc", "linear", ("flat",), {}, codes(16), WeightFormat(8, True, True)),
    ]
    tensors = {"a.weight": torch.zeros(2, 3, 3, 3), "b.weight": torch.zeros(2, 2, 3, 3), "fc.weight": torch.zeros(5, 2)}
    return Program(nodes, tensors, (3, 4, 4))


def test_a_small_residual_network_by_hand() -> None:
    # 16 pixels; a: 2 channels of 27 products, b: 2 of 18, fc: 10
    assert macs(residual(8)) == 16 * 2 * 27 + 16 * 2 * 18 + 10
    # a, r, b live together, 32 codes each; so do a, b and their sum
    assert activation_bytes(residual(8)) == activation_bytes(residual(4)) == 3 * 32
    assert activation_bytes(residual(16)) == activation_bytes(residual(12)) == 32 + 64 + 32


def test_a_view_takes_no_memory_of_its_own() -> None:
    nodes = [
        Node("x", "input", (), {}, codes(8)),
        Node("part", "slice", ("x",), {"start": 1, "stop": 3}),
        Node("flat", "flatten", ("part",)),
        Node("fc", "linear", ("flat",), {}, codes(16), WeightFormat(8, True, True)),
    ]
    assert activation_bytes(Program(nodes, {"fc.weight": torch.zeros(10, 32)}, (3, 4, 4))) == 48 + 20


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet8_w4a4", lambda: resnet8.build(num_classes=10, in_channels=3)),
        ("mnv1_w4a4", lambda: mobilenetv1.build(width=0.75, num_classes=1000, variant="imagenet")),
    ],
)
def test_a_shipped_network_multiplies_as_often_as_its_float_parent(name: str, build: Callable[[], nn.Module]) -> None:
    program = checkpoint.read(results_dir() / name / "checkpoint").program
    counted = 0

    def count(module: nn.Module, _: object, y: torch.Tensor) -> None:
        nonlocal counted
        counted += y.numel() * module.weight[0].numel()  # type: ignore[index]

    net = build().eval()
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    with torch.no_grad():
        net(torch.zeros(1, *program.input_shape))
    assert macs(program) == counted


RECORDS = read_records(results_dir())


@pytest.mark.parametrize(
    "record", [r for r in RECORDS if (results_dir() / r.checkpoint).is_dir()], ids=lambda r: r.file
)
def test_shipped_records_state_the_cost_of_their_checkpoint(record: Record) -> None:
    program = checkpoint.read(results_dir() / record.checkpoint).program
    assert (record.macs, record.activation_bytes) == (macs(program), activation_bytes(program))


def test_every_row_of_the_table_states_its_cost() -> None:
    assert [r.file for r in RECORDS if r.seed == 0 and not (r.macs and r.activation_bytes)] == []
