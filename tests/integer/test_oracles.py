"""Our integers against the engines they claim to equal; needs the extra ``oracle``. Not one code may differ."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.integer import onnx_model as ort
from tests.integer import tflite_model as tfl
from tests.integer.programs import Builder, module, power_of_two_scales, record
from zoo.integer.layers import build_integer, shapes


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [n for n in names if find_spec(n) is None]
    reason = f"{', '.join(missing)} not installed; install the extra: pip install lowbit-zoo[oracle]"
    return pytest.mark.skipif(bool(missing), reason=reason)


onnx_runtime = needs("onnx", "onnxruntime")
tflite_micro = needs("flatbuffers", "tflite_micro")
#          stride, groups, activation, pad (left, right, top, bottom)
CONVS = [
    ((1, 1), 1, None, (1, 1, 1, 1)),
    ((2, 2), 1, "relu", (0, 1, 0, 1)),
    ((1, 1), 8, "relu6", (1, 1, 1, 1)),
    ((2, 2), 8, None, (0, 1, 0, 1)),
    ((1, 1), 2, None, (1, 1, 1, 1)),
]
scales = pytest.mark.parametrize("ties", [False, True], ids=["any scale", "powers of two"])
seeds = pytest.mark.parametrize("seed", [0, 1, 2])


class Outcome:
    """A Program, run by our integers on random images or on given codes."""

    def __init__(self, builder: Builder, semantics: str, ties: bool, count: int = 1) -> None:
        self.program = builder.program
        if ties:
            power_of_two_scales(self.program)
        self.net = build_integer(self.program, semantics)
        self.values = record(self.net, builder.image(count))

    def codes(self, name: str) -> np.ndarray:
        """Return stored codes (zero point added), in our axis order."""
        fmt = self.program.format_of(name)
        kind = np.int16 if fmt.bits == 16 else np.int8 if fmt.signed else np.uint8
        return (self.values[name] + fmt.zero_point).numpy().astype(kind)

    def feed_every_pair(self) -> None:
        """Replace the values of ``x``, ``c`` and ``y`` by all 65536 pairs of 8-bit codes."""
        x, c = (self.program.format_of(n) for n in "xc")
        first, second = torch.meshgrid(
            torch.arange(x.low, x.high + 1.0), torch.arange(c.low, c.high + 1.0), indexing="ij"
        )
        pair: list[Tensor] = [first[None, None].clone(), second[None, None].clone()]
        self.values |= {"x": pair[0], "c": pair[1], "y": module(self.net, "y")(*pair)}


def check(found: np.ndarray, outcome: Outcome) -> None:
    wanted = outcome.codes("y")
    assert found.dtype == wanted.dtype and len(np.unique(wanted)) > 4
    different = int((found.reshape(wanted.shape) != wanted).sum())
    assert different == 0, f"{different} of {wanted.size} codes differ"


def check_but_ties(found: np.ndarray, outcome: Outcome, exact: np.ndarray) -> None:
    """Check a kernel that rounds after adding the zero point: half-way results differ if that is odd, nothing else.

    ``exact`` holds the results in output steps before rounding.
    """
    wanted, fmt = outcome.codes("y"), outcome.program.format_of("y")
    tie = (exact - np.floor(exact) == 0.5) & (fmt.zero_point % 2 == 1)
    high = np.minimum(np.floor(exact) + fmt.zero_point + 1, fmt.qmax)
    other = np.where(wanted == high, np.floor(exact) + fmt.zero_point, high).clip(fmt.qmin, fmt.qmax)
    assert np.array_equal(found, np.where(tie, other, wanted))


# ONNX Runtime: unsigned activations, signed weights


def params(outcome: Outcome, name: str) -> list[np.ndarray]:
    fmt = outcome.program.format_of(name)
    return [ort.scale(fmt.scale), ort.zero(fmt.zero_point)]


@onnx_runtime
@scales
@seeds
@pytest.mark.parametrize(("stride", "groups", "act", "pad"), CONVS)
def test_onnx_conv(
    stride: tuple[int, int], groups: int, act: str | None, pad: tuple[int, int, int, int], seed: int, ties: bool
) -> None:
    builder = Builder((8, 24, 24), seed)
    # the operator has no ReLU6 of its own; zero point 0 makes its saturation a ReLU
    builder.conv("y", "x", (8, 8), stride=stride, pad=pad, groups=groups, act="relu" if act else None)
    done, t = Outcome(builder, "float32", ties, 2), builder.program.tensors
    left, right, top, bottom = pad
    weight = [t["y.weight"].numpy(), t["y.weight_scale"].numpy(), np.zeros(8, np.int8)]
    found = ort.run(
        "QLinearConv",
        [done.codes("x"), *params(done, "x"), *weight, *params(done, "y"), t["y.bias"].numpy()],
        (0,), strides=stride, pads=[top, left, bottom, right], group=groups, kernel_shape=[3, 3],
    )  # fmt: skip
    check(found, done)


@onnx_runtime
@scales
@seeds
def test_onnx_linear(seed: int, ties: bool) -> None:
    builder = Builder((40, 1, 1), seed)
    builder.flatten("flat", "x")
    builder.linear("y", "flat", (40, 30))
    done, t = Outcome(builder, "float32", ties, 50), builder.program.tensors
    weight = [t["y.weight"].numpy(), ort.scale(float(t["y.weight_scale"])), np.array(0, np.int8)]
    arguments = [done.codes("flat"), *params(done, "x"), *weight, t["y.bias"].numpy(), *params(done, "y")]
    check(ort.run("QGemm", arguments, (0,), transB=1), done)


@onnx_runtime
@scales
@seeds
@pytest.mark.parametrize("operator", ["add", "mul"])
def test_onnx_add_and_mul_of_every_pair(operator: str, seed: int, ties: bool) -> None:
    builder = Builder((1, 4, 4), seed)
    builder.conv("c", "x", (1, 1))
    getattr(builder, operator)("y", "x", "c")
    done = Outcome(builder, "float32", ties)
    done.feed_every_pair()
    arguments = [done.codes("x"), *params(done, "x"), done.codes("c"), *params(done, "c"), *params(done, "y")]
    found = ort.run(f"QLinear{operator.capitalize()}", arguments, (0, 3))
    if operator == "mul" and ties:
        x, c, y = (done.program.format_of(n).scale for n in "xcy")
        check_but_ties(found, done, (done.values["x"] * done.values["c"]).numpy() * (x * c / y))
    else:
        check(found, done)


@onnx_runtime
@scales
@seeds
def test_onnx_means(seed: int, ties: bool) -> None:
    builder = Builder((64, 8, 4), seed)
    builder.mean("y", "x")
    done = Outcome(builder, "float32", ties, 20)
    arguments = [done.codes("x"), *params(done, "x"), *params(done, "y")]
    check(ort.run("QLinearGlobalAveragePool", arguments, (0,), channels_last=0), done)
    builder = Builder((8, 12, 12), seed)
    builder.avg_pool("y", "x", (2, 2), (2, 2))
    done = Outcome(builder, "float32", ties, 20)
    arguments = [done.codes("x"), *params(done, "x"), *params(done, "y")]
    found = ort.run("QLinearAveragePool", arguments, (0,), kernel_shape=[2, 2], strides=[2, 2])
    if ties:
        real = torch.nn.functional.avg_pool2d(done.values["x"], 2)
        check_but_ties(
            found, done, real.numpy() * (done.program.format_of("x").scale / done.program.format_of("y").scale)
        )
    else:
        check(found, done)


@onnx_runtime
@scales
@seeds
def test_onnx_cat(seed: int, ties: bool) -> None:
    builder = Builder((8, 12, 12), seed)
    builder.conv("c", "x", (8, 8))
    builder.cat("y", "x", "c")
    done = Outcome(builder, "float32", ties, 10)
    arguments = [*params(done, "y"), done.codes("x"), *params(done, "x"), done.codes("c"), *params(done, "c")]
    check(ort.run("QLinearConcat", arguments, (2, 5), axis=1), done)


# TensorFlow Lite Micro: signed activations of 8 and 16 bits, one image at a time, channels last


def last(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array.transpose(0, 2, 3, 1)) if array.ndim == 4 else array


def first(array: np.ndarray) -> np.ndarray:
    return array.transpose(0, 3, 1, 2) if array.ndim == 4 else array


def value(done: Outcome, name: str) -> tfl.Value:
    fmt, shape = done.program.format_of(name), shapes(done.program)[name]
    shape = (shape[0], *shape[2:], shape[1]) if len(shape) == 4 else shape
    return tfl.Value("int16" if fmt.bits == 16 else "int8", shape, (fmt.scale,), fmt.zero_point)


def constants(done: Outcome, order: tuple[int, ...], axis: int) -> list[tfl.Value]:
    """Return the weight in TFLite's axis order and the bias, int64 for 16-bit inputs."""
    t, source = done.program.tensors, done.program.format_of("x")
    scale, bias = t["y.weight_scale"], t["y.bias"].numpy()
    bias = bias.astype(np.int64 if source.bits == 16 else np.int32)
    return [
        tfl.constant(np.ascontiguousarray(t["y.weight"].numpy().transpose(order)), tuple(scale.tolist()), axis),
        tfl.constant(bias, tuple((source.scale * scale).tolist())),
    ]


def start(shape: tuple[int, int, int], bits: int, seed: int) -> Builder:
    return Builder(shape, seed, bits, "int8" if bits == 8 else "signed")


widths = pytest.mark.parametrize("bits", [8, 16])


@tflite_micro
@scales
@seeds
@widths
@pytest.mark.parametrize(("stride", "groups", "act", "pad"), CONVS)
def test_tflite_conv(
    stride: tuple[int, int], groups: int, act: str | None, pad: tuple[int, int, int, int], seed: int, ties: bool,
    bits: int,
) -> None:  # fmt: skip
    builder = start((8, 12, 12), bits, seed)
    builder.conv("y", "x", (8, 8), stride=stride, pad=pad, groups=groups, act=act)
    done, depthwise = Outcome(builder, "tflite", ties), groups == 8
    weights = constants(done, (1, 2, 3, 0) if depthwise else (0, 2, 3, 1), 3 if depthwise else 0)
    same = {"padding": 0, "strideH": stride[0], "strideW": stride[1], "dilationHFactor": 1, "dilationWFactor": 1}
    kind = {"kind": "DepthwiseConv2D", "depthMultiplier": 1} if depthwise else {"kind": "Conv2D"}
    fused = {None: 0, "relu": 1, "relu6": 3}[act]
    file = tfl.write(
        "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [value(done, "x"), *weights], value(done, "y"),
        fusedActivationFunction=fused, **kind, **same,
    )  # fmt: skip
    check(first(tfl.run(file, last(done.codes("x")))), done)


@tflite_micro
@scales
@seeds
@widths
def test_tflite_linear(seed: int, ties: bool, bits: int) -> None:
    builder = start((40, 1, 1), bits, seed)
    builder.flatten("flat", "x")
    builder.linear("y", "flat", (40, 200))
    done = Outcome(builder, "tflite", ties)
    inputs = [value(done, "flat"), *constants(done, (0, 1), 0)]
    file = tfl.write("FULLY_CONNECTED", inputs, value(done, "y"), kind="FullyConnected")
    check(tfl.run(file, done.codes("flat")), done)


@tflite_micro
@scales
@seeds
@widths
@pytest.mark.parametrize("operator", ["add", "mul"])
def test_tflite_add_and_mul(operator: str, seed: int, ties: bool, bits: int) -> None:
    builder = start((1, 256, 256), bits, seed)
    builder.conv("c", "x", (1, 1))
    getattr(builder, operator)("y", "x", "c")
    done = Outcome(builder, "tflite", ties)
    if bits == 8:
        done.feed_every_pair()
    inputs = [value(done, "x"), value(done, "c")]
    options = {"potScaleInt16": False} if operator == "add" else {}
    file = tfl.write(operator.upper(), inputs, value(done, "y"), kind=operator.capitalize(), **options)
    check(first(tfl.run(file, last(done.codes("x")), last(done.codes("c")))), done)


@tflite_micro
@scales
@seeds
@widths
def test_tflite_mean(seed: int, ties: bool, bits: int) -> None:
    builder = start((64, 7, 9), bits, seed)
    builder.mean("y", "x")
    done = Outcome(builder, "tflite", ties)
    axes = tfl.constant(np.array([1, 2], np.int32))
    file = tfl.write("MEAN", [value(done, "x"), axes], value(done, "y"), kind="Reducer", keepDims=True)
    check(first(tfl.run(file, last(done.codes("x")))), done)


@tflite_micro
@scales
@seeds
@widths
def test_tflite_requantizes_as_each_part_of_a_cat(seed: int, ties: bool, bits: int) -> None:
    builder = start((8, 16, 16), bits, seed)
    builder.cat("y", "x")
    done = Outcome(builder, "tflite", ties)
    file = tfl.write("QUANTIZE", [value(done, "x")], value(done, "y"), kind="Quantize")
    check(first(tfl.run(file, last(done.codes("x")))), done)
