"""Whole integer networks, node by node: exact sums, and codes beside those of the fake-quantized network."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor, fx

from tests.integer import by_the_book as book
from tests.integer.programs import Builder, Kind, module, record
from zoo.errors import QuantError, RecipeError
from zoo.integer.layers import IntConv2d, IntLayer, build_integer, limits, shapes
from zoo.integer.program import Node, Program, TensorFormat, centred_weight
from zoo.integer.simulated import build_simulated

SEMANTICS = ("tflite", "float32", "floor")
OPS = {"input", "conv2d", "linear", "add", "mul", "cat", "mean", "avg_pool", "max_pool", "flatten", "slice",
       "table", "requantize"}  # fmt: skip
Case = tuple[Builder, fx.GraphModule, dict[str, Tensor]]


def every_op(bits: int, kind: Kind, seed: int) -> Builder:
    """Return a network with every operation, and convolutions of every form."""
    b = Builder((3, 13, 11), seed, bits, kind)
    b.conv("uneven", "x", (3, 8), stride=(2, 2), pad=(0, 1, 2, 1), act="relu")
    b.conv("depthwise", "uneven", (8, 8), groups=8, act="relu6")
    b.conv("grouped", "depthwise", (8, 12), groups=4, weight_bits=4)
    b.conv("dilated", "uneven", (8, 12), dilation=(2, 2), pad=(2, 2, 2, 2), weight_bits=2)
    b.conv("affine", "uneven", (8, 12), (1, 1), pad=(0, 0, 0, 0), weight_bits=5, symmetric=False)
    b.add("sum", "grouped", "dilated", act="relu")
    b.add("plain_sum", "sum", "affine")
    b.requantize("narrowed", "plain_sum", max(2, bits // 2))
    b.slice("left", "affine", 0, 4)
    b.slice("right", "affine", 4, 12)
    b.cat("joined", "narrowed", "depthwise", "right", "left")
    b.mean("squeezed", "joined")
    b.conv("excite", "squeezed", (32, 32), (1, 1), pad=(0, 0, 0, 0))
    if bits <= 8:
        b.table("gate", "excite", "hardsigmoid")
        b.table("swished", "joined", "hardswish")
        b.mul("scaled", "swished", "gate")
    else:
        b.mul("scaled", "joined", "excite")
    b.max_pool("largest", "scaled")
    b.avg_pool("average", "largest", (2, 2), (1, 1))
    b.mean("pooled", "average")
    b.flatten("flat", "pooled")
    b.linear("logits", "flat", (32, 10), out_bits=16)
    return b


def case(bits: int, kind: Kind, semantics: str, seed: int = 0) -> Case:
    builder = every_op(bits, kind, seed)
    net = build_integer(builder.program, semantics)
    image = builder.image(3).to(memory_format=torch.channels_last)
    return builder, net, record(net, image) | {"image": image}


def weighted(program: Program) -> list[Node]:
    return [n for n in program.nodes if n.op in ("conv2d", "linear")]


def sums(program: Program, node: Node, x: Tensor) -> np.ndarray:
    """Return a layer's accumulators worked out in int64, window by window."""
    weight = centred_weight(program, node.name).numpy().astype(np.int64)
    bias = program.tensors[f"{node.name}.bias"].numpy().astype(np.int64)
    codes = x.numpy().astype(np.int64)
    if node.op == "linear":
        return codes @ weight.T + bias
    left, right, top, bottom = node.attrs["pad"]
    codes = np.pad(codes, ((0, 0), (0, 0), (top, bottom), (left, right)))
    (dy, dx), (sy, sx) = node.attrs["dilation"], node.attrs["stride"]
    span = ((weight.shape[2] - 1) * dy + 1, (weight.shape[3] - 1) * dx + 1)
    windows = sliding_window_view(codes, span, (2, 3))[:, :, ::sy, ::sx, ::dy, ::dx]
    groups = node.attrs["groups"]
    parts = [
        np.einsum("nchwij,ocij->nohw", w, o)
        for w, o in zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    ]
    return np.concatenate(parts, 1) + bias[:, None, None]


CASES = [(8, "unsigned"), (8, "int8"), (8, "signed"), (4, "unsigned"), (2, "signed"), (6, "int8"), (16, "signed")]


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(("bits", "kind"), CASES)
def test_codes_are_integers_in_range_and_not_all_alike(bits: int, kind: Kind, semantics: str) -> None:
    builder, _, values = case(bits, kind, semantics)
    assert OPS - {n.op for n in builder.program.nodes} == (set() if bits <= 8 else {"table"})
    for node in builder.program.nodes:
        out, codes = builder.program.format_of(node.name), values[node.name]
        low, high = limits(node, out)
        assert torch.equal(codes, codes.round()), node.name
        assert low <= float(codes.min()) and float(codes.max()) <= high, node.name
        assert len(codes.unique()) >= {2: 1, 3: 2, 4: 2}.get(out.bits, 8), node.name
        assert tuple(codes.shape[1:]) == shapes(builder.program)[node.name][1:]


@pytest.mark.parametrize(("bits", "kind"), CASES)
def test_accumulators_are_exact_and_within_the_bound(bits: int, kind: Kind) -> None:
    builder, net, values = case(bits, kind, "tflite")
    for node in weighted(builder.program):
        layer: IntLayer = module(net, node.name)
        x = values[node.inputs[0]]
        wanted = sums(builder.program, node, x)
        with torch.no_grad():
            found = layer.accumulate(x)
        assert np.array_equal(found.double().numpy(), wanted.astype(np.float64)), node.name
        assert np.abs(wanted).max() <= layer.bound, node.name
        if found.dtype == torch.float32:
            assert layer.bound < 2**24, node.name


def test_half_a_step_beyond_float32_is_refused() -> None:
    b = Builder((1, 2, 2), 0)
    b.requantize("wide", "x", 8)
    node = b.program.node("wide")
    assert node.out is not None
    for factor, refused in ((2.0**24, False), (2.0**25, True), (2.0**120, True)):
        out = replace(node.out, scale=b.program.format_of("x").scale * factor)
        b.program.nodes[-1] = replace(node, out=out)
        if refused:
            with pytest.raises(QuantError, match=r"wide: its scale is .* times that of its input"):
                build_integer(b.program, "floor")
        else:
            assert float(record(build_integer(b.program, "floor"), b.image())["wide"].abs().max()) <= 1


@pytest.mark.parametrize("factor", [1, 3000])
def test_a_bias_beyond_float32_leaves_the_sum_exact(factor: int) -> None:
    b = Builder((8, 6, 6), 0)
    b.conv("conv", "x", (8, 4))
    b.program.tensors["conv.bias"] = torch.tensor([2**24 + 1, -(2**25) - 1, 7, 2**28 + 3], dtype=torch.int32) // factor
    net = build_integer(b.program, "tflite")
    values = record(net, b.image())
    wanted = sums(b.program, b.program.node("conv"), values["x"])
    assert np.array_equal(module(net, "conv").accumulate(values["x"]).double().numpy(), wanted.astype(np.float64))


def test_the_bound_is_reached_by_the_worst_input() -> None:
    b = Builder((4, 3, 3), 1, kind="signed")
    b.conv("conv", "x", (4, 1), pad=(0, 0, 0, 0))
    b.program.tensors["conv.bias"] = torch.tensor([12345], dtype=torch.int32)
    layer: IntConv2d = module(build_integer(b.program, "tflite"), "conv")
    worst = -128 * torch.sign(centred_weight(b.program, "conv"))
    assert abs(float(layer.accumulate(worst)) - 12345) + 12345 == layer.bound


@pytest.mark.parametrize(("bits", "refused"), [(8, True), (16, False)])
def test_an_accumulator_beyond_int32_is_refused_for_8_bits(bits: int, refused: bool) -> None:
    b = Builder((1, 1, 1), 0, bits, "signed")
    b.flatten("flat", "x")
    b.linear("fc", "flat", (1, 1))
    b.program.tensors["fc.bias"] = torch.tensor([2**31 - 2], dtype=torch.int32)
    b.program.tensors["fc.weight"] = torch.tensor([[100]], dtype=torch.int8)
    if refused:
        with pytest.raises(QuantError, match=r"fc: .*int32"):
            build_integer(b.program, "tflite")
    else:
        build_integer(b.program, "tflite")


def test_16_bit_inputs_take_the_rule_of_int64_sums() -> None:
    """The operand decides, not the result: 8-bit outputs of 16-bit inputs round once."""
    b = Builder((16, 1, 1), 0, 16, "signed")
    b.flatten("flat", "x")
    b.linear("fc", "flat", (16, 1), out_bits=8)
    source, out, scale = b.program.format_of("x"), b.program.format_of("fc"), b.program.tensors["fc.weight_scale"]
    real = source.scale * float(scale) / out.scale
    points = book.hard_points(real, out.low, out.high, 2**47, 0)
    pair = book.quantize_multiplier(real)
    wanted = [book.clamp(book.single_rounding(x, *pair), out.low, out.high) for x in points]
    double = [book.clamp(book.double_rounding(x, *pair), out.low, out.high) for x in points if abs(x) < 2**31]
    layer: IntLayer = module(build_integer(b.program, "tflite"), "fc")
    assert layer.requantize(torch.tensor(points, dtype=torch.float64)[:, None])[:, 0].tolist() == wanted
    assert double != [w for w, x in zip(wanted, points, strict=True) if abs(x) < 2**31]


@pytest.mark.parametrize("semantics", SEMANTICS)
def test_8_bit_sum_of_16_bit_inputs(semantics: str) -> None:
    b = Builder((4, 9, 9), 2, 16, "signed")
    b.conv("c", "x", (4, 4))
    b.add("y", "x", "c")
    b.program.nodes[-1] = replace(b.program.node("y"), out=b.format(6.0, bits=8))
    net = build_integer(b.program, semantics)
    assert semantics == "float32" or module(net, "y").add.reach == 2**15  # the range over which its path is proven
    values = record(net, b.image())
    real = sum(values[n].double() * b.program.format_of(n).scale for n in "xc") / b.program.format_of("y").scale
    assert len(values["y"].unique()) > 50
    assert float((real.clamp(-128, 127) - values["y"]).abs().max()) <= (1.0 if semantics == "floor" else 0.51)


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_16_bit_inputs_pass_int32(semantics: str, sign: int) -> None:
    """1024 products of 127 and 32767 make 4.3e9; the output scale puts that at code 100."""
    b = Builder((1024, 1, 1), 0, 16, "signed")
    b.flatten("flat", "x")
    b.linear("fc", "flat", (1024, 1), out_bits=8)
    b.program.tensors["fc.weight"] = torch.full((1, 1024), 127, dtype=torch.int8)
    b.program.tensors["fc.bias"] = torch.zeros(1, dtype=torch.int32)
    node, total = b.program.node("fc"), 1024 * 127 * 32767
    assert total > 2**31 and node.out is not None
    step = b.program.format_of("x").scale * float(b.program.tensors["fc.weight_scale"])
    b.program.nodes[-1] = replace(node, out=replace(node.out, scale=step * total / 100))
    codes = record(build_integer(b.program, semantics), torch.full((1, 1024, 1, 1), sign * 2 * b.top("x")))["fc"]
    assert abs(float(codes) - sign * 100) <= 1


def allowed(out: TensorFormat) -> float:
    """Return the steps that a code may be off: one, and with 15-bit multipliers their error at the largest code."""
    return 1.0 if out.bits <= 8 else 1.0 + 2.0**-14 * out.reach


@pytest.mark.parametrize("semantics", SEMANTICS)
@pytest.mark.parametrize(("bits", "kind"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_each_layer_is_within_one_step_of_its_simulation(bits: int, kind: Kind, semantics: str, seed: int) -> None:
    builder, _, values = case(bits, kind, semantics, seed)
    simulated = build_simulated(builder.program, semantics)
    program = builder.program
    for node in program.nodes:
        inputs = [values[i] * program.format_of(i).scale for i in node.inputs] or [values["image"]]
        with torch.no_grad():
            real = module(simulated, node.name)(*inputs)
        difference = (real / program.format_of(node.name).scale - values[node.name]).abs()
        assert float(difference.max()) <= allowed(program.format_of(node.name)) + 1e-3, node.name
        rounded_once = node.op in ("conv2d", "linear", "input", "max_pool", "flatten", "slice")
        if program.format_of(node.name).bits <= 8 and rounded_once:
            assert float((difference > 0.5).double().mean()) < 0.02, f"{node.name}: the simulation is biased"


def test_logits_are_codes_times_one_scale() -> None:
    builder, net, values = case(8, "unsigned", "tflite")
    assert torch.equal(values["dequantize"], values["logits"] * builder.program.format_of("logits").scale)
    assert torch.equal(net(values["image"]), values["dequantize"])


def test_unknown_semantics_are_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'tflite'"):
        build_integer(every_op(8, "unsigned", 0).program, "tflit")


def test_another_image_size_is_refused_at_the_mean() -> None:
    _, net, _ = case(8, "unsigned", "tflite")
    with pytest.raises(QuantError, match="averages 35 positions"):
        net(torch.zeros(1, 3, 17, 17))
