"""Programs to tensors and back, on a network small enough to work out its bytes by hand."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.artifact import codec
from zoo.artifact.codec import decode, encode
from zoo.errors import ArtifactError
from zoo.integer.program import Node, Program, TensorFormat, WeightFormat

BITS = (2, 3, 4, 5, 6, 7, 8, 16)


def limits(bits: int, signed: bool) -> tuple[int, int]:
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def act(bits: int, signed: bool, scale: float = 0.5) -> TensorFormat:
    return TensorFormat(bits, signed, *limits(bits, signed), scale, 0)


def program(codes: Tensor, weight: WeightFormat, out: TensorFormat, zero: int = 1) -> Program:
    """An input of ``codes.shape[1]`` channels, a linear layer with these weight codes, and ReLU6 as a table."""
    rows = len(codes)
    many = rows if weight.per_channel else 1
    middle = act(8, True)
    tensors = {
        "fc.weight": codes.to(torch.int8 if weight.symmetric else torch.uint8),
        "fc.weight_scale": torch.arange(1, many + 1, dtype=torch.float32) / 3,
        "fc.bias": torch.arange(rows, dtype=torch.int32) - 1,
        "act.table": torch.linspace(out.qmin, out.qmax, 256).round().to(torch.int32),
    }
    if not weight.symmetric:
        tensors["fc.weight_zero_point"] = torch.full((many,), zero, dtype=torch.int32)
    nodes = [
        Node("image", "input", (), {}, act(8, False)),
        Node("flat", "flatten", ("image",)),
        Node("fc", "linear", ("flat",), {}, middle, weight),
        Node("act", "table", ("fc",), {"function": "hardswish"}, out),
    ]
    return Program(nodes, tensors, (codes.shape[1], 1, 1))


def again(made: Program) -> Program:
    tensors, nodes = encode(made)
    return decode(tensors, json.loads(json.dumps(nodes)), list(made.input_shape), "here")


def raw(tensor: Tensor) -> str:
    return tensor.numpy().tobytes().hex()


def test_bytes_by_hand() -> None:
    # offset 8: -8, -1, 0, 1, 7 become 0, 7, 8, 9, 15
    four = WeightFormat(4, symmetric=True, per_channel=False)
    tensors, _ = encode(program(torch.tensor([[-8, -1, 0, 1, 7]]), four, act(8, False)))
    assert raw(tensors["fc.weight_packed"]) == "70980f00"
    # offset 2: -2, -1, 0, 1 become 0, 1, 2, 3, from the lowest bits up 0b11100100
    two = WeightFormat(2, symmetric=True, per_channel=False)
    tensors, _ = encode(program(torch.tensor([[-2, -1, 0, 1]]), two, act(8, False)))
    assert raw(tensors["fc.weight_packed"]) == "e4000000"
    # affine codes are stored as they are: 1, 2, 3 of three bits are 0b011010001
    three = WeightFormat(3, symmetric=False, per_channel=False)
    tensors, _ = encode(program(torch.tensor([[1, 2, 3]]), three, act(8, False)))
    assert raw(tensors["fc.weight_packed"]) == "d1000000" + "00" * 8
    assert raw(tensors["fc.weight_zero_point"]) == "01000000"
    # from five bits on, one byte a code, two's complement
    eight = WeightFormat(8, symmetric=True, per_channel=False)
    tensors, _ = encode(program(torch.tensor([[-128, -1, 127]]), eight, act(8, False)))
    assert raw(tensors["fc.weight_packed"]) == "80ff7f"
    assert raw(tensors["bias"]) == "ffffffff" and raw(tensors["fc.weight_scale"]) == "abaaaa3e"


@given(
    bits=st.integers(2, 8), out_bits=st.sampled_from(BITS), symmetric=st.booleans(), signed=st.booleans(),
    per_channel=st.booleans(), rows=st.integers(1, 4), columns=st.integers(1, 70), seed=st.integers(0, 999),
)  # fmt: skip
@settings(deadline=None)
def test_round_trip(
    bits: int, out_bits: int, symmetric: bool, signed: bool, per_channel: bool, rows: int, columns: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    low, high = limits(bits, symmetric)
    codes = torch.randint(low, high + 1, (rows, columns), generator=generator)
    made = program(codes, WeightFormat(bits, symmetric, per_channel), act(out_bits, signed, 0.125 + seed))
    read = again(made)
    assert read.nodes == made.nodes and read.input_shape == made.input_shape
    assert read.tensors.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert read.tensors[name].dtype == tensor.dtype and torch.equal(read.tensors[name], tensor), name


@pytest.mark.parametrize(("bits", "signed", "dtype"), [
    (8, False, torch.uint8), (8, True, torch.int16), (16, True, torch.int16), (16, False, torch.int32),
])  # fmt: skip
def test_tables_take_the_smallest_type_that_holds_them(bits: int, signed: bool, dtype: torch.dtype) -> None:
    made = program(torch.zeros(1, 1), WeightFormat(8, True, False), act(bits, signed))
    tensors, _ = encode(made)
    assert tensors["act.table"].dtype == dtype
    assert torch.equal(again(made).tensors["act.table"], made.tensors["act.table"])


def refused(weight: WeightFormat, message: str, *, out: TensorFormat | None = None, **tensors: Tensor) -> None:
    made = program(torch.zeros(2, 3), weight, out or act(8, False))
    stored, nodes = encode(made)
    stored |= {name.replace("_at_", "."): tensor for name, tensor in tensors.items()}
    with pytest.raises(ArtifactError, match=message):
        decode(stored, nodes, [3, 1, 1], "here")


def test_codes_beyond_their_bits_are_refused() -> None:
    signed = torch.zeros(2, 3, dtype=torch.int8)
    for bits in (5, 6, 7):
        for code in (2 ** (bits - 1), -(2 ** (bits - 1)) - 1):
            refused(WeightFormat(bits, True, True), "codes beyond", fc_at_weight_packed=signed + code)
        unsigned = torch.full((2, 3), 2**bits, dtype=torch.uint8)
        refused(WeightFormat(bits, False, True), "codes beyond", fc_at_weight_packed=unsigned)
    # a narrow range leaves the smallest code out
    refused(WeightFormat(8, True, True, narrow=True), "codes beyond", fc_at_weight_packed=signed - 128)
    zeros = torch.zeros(2, 1, dtype=torch.int32)  # with the offset, -8 eight times
    refused(WeightFormat(4, True, True, narrow=True), "codes beyond", fc_at_weight_packed=zeros)


def test_zero_points_beyond_their_bits_are_refused() -> None:
    for zero in (-1, 16):
        wrong = torch.full((2,), zero, dtype=torch.int32)
        refused(WeightFormat(4, False, True), "weight_zero_point", fc_at_weight_zero_point=wrong)
    right = torch.zeros(2, dtype=torch.int32)
    refused(WeightFormat(4, True, True), "belongs to no node", fc_at_weight_zero_point=right)


@pytest.mark.parametrize(("table", "message"), [
    (torch.full((256,), 200, dtype=torch.int16), "outside the node's format"),
    (torch.zeros(256), "must be uint8, int16 or int32"),
    (torch.full((256,), float("nan")), "must be uint8, int16 or int32"),
    (torch.zeros(255, dtype=torch.uint8), "shape"),
    (torch.zeros(256, 1, dtype=torch.uint8), "shape"),
])  # fmt: skip
def test_wrong_tables_are_refused(table: Tensor, message: str) -> None:
    refused(WeightFormat(8, True, True), message, out=act(8, True), act_at_table=table)


NODES: dict[str, tuple[Any, Any, str]] = {
    "no mapping": ((1,), 7, "expected a mapping"),
    "unknown field": ((1, "code"), "x", "'code' is unknown"),
    "op type": ((1, "op"), ["flatten"], "operation"),
    "second input": ((1, "op"), "input", "inputs|first node|takes 0"),
    "name twice": ((1, "name"), "image", "not a new"),
    "name type": ((1, "name"), 3, "not a new"),
    "name path": ((1, "name"), "a/b", "not a new"),
    "name empty": ((1, "name"), "", "not a new"),
    "inputs type": ((1, "inputs"), "image", "earlier nodes"),
    "inputs in it": ((1, "inputs"), [["image"]], "takes 1"),
    "later": ((1, "inputs"), ["fc"], "earlier nodes"),
    "none": ((1, "inputs"), [], "takes 1"),
    "act": ((2, "attrs"), {"act": "exec"}, "act"),
    "attrs type": ((2, "attrs"), [], "expected a mapping"),
    "function": ((3, "attrs", "function"), "system", "function"),
    "function type": ((3, "attrs", "function"), ["relu"], "function"),
    "no channel": ((1,), {"name": "s", "op": "slice", "inputs": ["image"], "attrs": {"start": 1, "stop": 1}},
                   "no channel lies from 1 to before 1"),
    "half a slice": ((1,), {"name": "s", "op": "slice", "inputs": ["image"], "attrs": {"start": 1}}, "start, stop"),
    "slice type": ((1,), {"name": "s", "op": "slice", "inputs": ["image"], "attrs": {"start": 0, "stop": "2"}}, "stop"),
    "slice below": ((1,), {"name": "s", "op": "slice", "inputs": ["image"], "attrs": {"start": -1, "stop": 2}},
                    "start"),
    "no format": ((2, "out"), None, "needs exactly"),
    "more format": ((2, "out", "x"), 1, "needs exactly"),
    "signed": ((2, "out", "signed"), 1, "signed"),
    "bits": ((2, "out", "bits"), 9, "bits must be"),
    "bool bits": ((2, "out", "bits"), True, "must be an integer"),
    "empty range": ((2, "out", "qmin"), 127, "do not fit"),
    "infinite scale": ((2, "out", "scale"), float("inf"), "scale"),
    "negative scale": ((2, "out", "scale"), -1.0, "scale"),
    "scale type": ((2, "out", "scale"), "1", "scale"),
    "scale of 64 bits": ((2, "out", "scale"), 0.1, r"scale: 0\.1 is no float32; write 0\.10000000149011612"),
    "scale of a whole number": ((2, "out", "scale"), 2**24 + 1, "scale: 16777217 is no float32; write 16777216"),
    "weight type": ((2, "weight"), 3, "needs exactly"),
    "flag type": ((2, "weight", "narrow"), 0, "flags"),
    "narrow": ((2, "weight"), {"bits": 4, "symmetric": False, "per_channel": True, "narrow": True, "shape": [2, 3]},
               "narrow range"),
    "three sides": ((2, "weight", "shape"), [2, 3, 1], "shape"),
    "zero side": ((2, "weight", "shape"), [2, 0], "shape"),
    "other shape": ((2, "weight", "shape"), [3, 2], "shape"),
}  # fmt: skip


@pytest.mark.parametrize("case", NODES)
def test_wrong_nodes_are_refused(case: str) -> None:
    path, value, message = NODES[case]
    tensors, nodes = encode(program(torch.zeros(2, 3), WeightFormat(4, True, True), act(8, False)))
    wrong: Any = copy.deepcopy(nodes)
    place = wrong
    for key in path[:-1]:
        place = place.setdefault(key, {}) if isinstance(place, dict) else place[key]
    place[path[-1]] = value
    with pytest.raises(ArtifactError, match=message) as error:
        decode(tensors, wrong, [3, 1, 1], "here")
    assert str(error.value).startswith("here") and "\n" not in str(error.value)


@pytest.mark.parametrize("nodes", [None, {}, [], "x", [{}], [None] * 5000])
def test_a_list_of_nodes_that_is_none_is_refused(nodes: Any) -> None:
    with pytest.raises(ArtifactError, match="here"):
        decode({}, nodes, [3, 1, 1], "here")


def test_a_whole_number_is_a_scale() -> None:
    tensors, nodes = encode(program(torch.zeros(2, 3), WeightFormat(4, True, True), act(8, False)))
    nodes[2]["out"]["scale"] = 2**64
    scale = decode(tensors, nodes, [3, 1, 1], "here").format_of("fc").scale
    assert isinstance(scale, float) and scale == 2.0**64


@pytest.mark.parametrize(
    "shape", [None, [3, 1], [3, 1, 1, 1], [0, 1, 1], [3, 1, 5000], [3.0, 1, 1], [True, 1, 1], "abc"]
)
def test_wrong_input_shapes_are_refused(shape: Any) -> None:
    tensors, nodes = encode(program(torch.zeros(2, 3), WeightFormat(4, True, True), act(8, False)))
    with pytest.raises(ArtifactError, match="input_shape"):
        decode(tensors, nodes, shape, "here")


def wide(*channels: int) -> Program:
    """Linear layers of so many outputs, side by side on a picture of one pixel."""
    nodes = [Node("image", "input", (), {}, act(8, False)), Node("flat", "flatten", ("image",))]
    tensors = {}
    for i, rows in enumerate(channels):
        nodes.append(Node(f"fc{i}", "linear", ("flat",), {}, act(8, True), WeightFormat(2, True, False)))
        tensors |= {
            f"fc{i}.weight": torch.zeros(rows, 1, dtype=torch.int8), f"fc{i}.weight_scale": torch.ones(1),
            f"fc{i}.bias": torch.zeros(rows, dtype=torch.int32),
        }  # fmt: skip
    return Program(nodes, tensors, (1, 1, 1))


def test_channels_cost_more_than_their_bytes_and_are_bounded() -> None:
    """A channel of one 2-bit weight takes 8 bytes of a file, and 50 microseconds of a proof."""
    assert len(again(wide(2**16)).tensors["fc0.bias"]) == 2**16
    with pytest.raises(ArtifactError, match=r"here: fc0\.weight\.shape .*beyond any edge network"):
        again(wide(2**16 + 1))
    assert len(again(wide(*[2**16] * 4)).nodes) == 6
    with pytest.raises(ArtifactError, match="here: more than 262144 output channels"):
        again(wide(*[2**16] * 4, 1))


def test_weights_of_all_layers_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """In memory two bits take sixteen times as much as in the file."""
    monkeypatch.setattr(codec, "_MAX_WEIGHTS", 12)
    assert len(again(wide(4, 8)).nodes) == 4
    with pytest.raises(ArtifactError, match=r"here: fc1\.weight\.shape \[9, 1\] is beyond any edge network"):
        again(wide(4, 9))
