"""The C of docs/deploy.md, compiled, gives the codes of shipped networks, and the arithmetic of any number."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import zoo
from tests.compiler import needs_compiler
from tests.integer import by_the_book
from zoo.integer.program import Node, Program
from zoo.integer.semantics._fixed_point import DoubleRounding, quantize_multiplier
from zoo.native.library import compiler
from zoo.paths import results_dir

pytestmark = needs_compiler
LOOPS = """
void requantize_all(int64_t *x, int64_t n, int32_t m, int shift, int wide)
{
    for (int64_t i = 0; i < n; i++)
        x[i] = wide ? requantize16(x[i], m, shift) : requantize((int32_t)x[i], m, shift);
}
void sum_all(int64_t *a, const int64_t *b, int64_t n, const int32_t m[3], const int shift[3])
{
    for (int64_t i = 0; i < n; i++)
        a[i] = sum((int32_t)a[i], (int32_t)b[i], 20, m, shift);
}
"""
PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    (code,) = re.findall(r"```c\n(.*?)```", PAGE.read_text(), re.S)
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "deploy.c").write_text(code + LOOPS)
    words = ["-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    found = compiler()
    assert found is not None
    subprocess.run([*found, *words, "-o", "deploy.so", "deploy.c", "-lm"], cwd=folder, check=True)
    made = ctypes.CDLL(str(folder / "deploy.so"))
    made.requantize16.argtypes = [ctypes.c_int64, ctypes.c_int32, ctypes.c_int]
    return made


def multiplier(library: ctypes.CDLL, factor: float) -> tuple[ctypes.c_int32, ctypes.c_int]:
    m, shift = ctypes.c_int32(), ctypes.c_int()
    library.multiplier(ctypes.c_double(factor), ctypes.byref(m), ctypes.byref(shift))
    assert (m.value, shift.value) == quantize_multiplier(factor)
    return m, shift


def requantized(library: ctypes.CDLL, acc: torch.Tensor, factors: list[float], wide: bool = False) -> torch.Tensor:
    """Return what the C gives for accumulators ``[N, C, ...]``, one factor per channel."""
    rows = acc.transpose(0, 1).clone(memory_format=torch.contiguous_format)
    for row, factor in zip(rows, factors, strict=True):
        library.requantize_all(pointer(row), ctypes.c_int64(row.numel()), *multiplier(library, factor), int(wide))
    return rows.transpose(0, 1)


def pointer(x: torch.Tensor) -> ctypes.c_void_p:
    assert x.dtype == torch.int64 and x.is_contiguous()
    return ctypes.c_void_p(x.data_ptr())


def summed(
    library: ctypes.CDLL, program: Program, node: Node, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Return what the C gives for the sums of a convolution or linear layer over centred codes ``x``."""
    assert node.out is not None
    if node.op == "linear":
        acc = F.linear(x.double(), weight, bias)
    else:
        attrs = node.attrs
        padded = F.pad(x.double(), tuple(attrs["pad"]))
        acc = F.conv2d(padded, weight, bias, tuple(attrs["stride"]), 0, tuple(attrs["dilation"]), attrs["groups"])
    source, out = program.format_of(node.inputs[0]), node.out
    scales = program.tensors[f"{node.name}.weight_scale"].double().tolist()
    return requantized(library, acc.long(), [source.scale * s / out.scale for s in scales], out.bits > 8)


def added(library: ctypes.CDLL, a: torch.Tensor, b: torch.Tensor, scales: tuple[float, float, float]) -> torch.Tensor:
    twice = 2 * max(scales[:2])
    pairs = [multiplier(library, r) for r in (scales[0] / twice, scales[1] / twice, twice / (2**20 * scales[2]))]
    m = (ctypes.c_int32 * 3)(*(p[0].value for p in pairs))
    shift = (ctypes.c_int * 3)(*(p[1].value for p in pairs))
    a, b = (x.clone(memory_format=torch.contiguous_format) for x in (a, b))
    library.sum_all(pointer(a), pointer(b), ctypes.c_int64(a.numel()), m, shift)
    return a


def test_requantize_on_any_number(library: ctypes.CDLL) -> None:
    rng = np.random.default_rng(0)
    acc = torch.from_numpy(rng.integers(-(2**31), 2**31, (400, 6)))
    acc[:200] >>= torch.from_numpy(rng.integers(0, 31, (200, 6)))
    acc[-2], acc[-1] = -(2**31), 2**31 - 1
    factors = [0.25, 1.0, 3.7, 1e-3, 2.0**-20 * 0.7, 1 - 2.0**-40]
    ours = DoubleRounding([quantize_multiplier(f) for f in factors])
    assert torch.equal(requantized(library, acc, factors), ours(acc))


def test_a_factor_of_nothing_is_zero(library: ctypes.CDLL) -> None:
    assert requantized(library, torch.tensor([[12345], [-7]]), [0.0]).flatten().tolist() == [0, 0]
    assert requantized(library, torch.tensor([[2**31 - 1], [-7]]), [2.0**-40]).flatten().tolist() == [0, 0]


def test_the_other_functions_on_hard_points(library: ctypes.CDLL) -> None:
    for real in (0.25, 3.7, 1e-3, 2.0**-20 * 0.7, 1 - 2.0**-40, 7e-9):
        m, shift = multiplier(library, real)
        for x in by_the_book.hard_points(real, -(2**15), 2**15 - 1, 2**31, 0):
            wanted = by_the_book.single_rounding(x, m.value, shift.value)
            if abs(wanted) < 2**31:
                assert library.requantize16(x, m, shift) == wanted
        for count in (1, 2, 9, 49, 64, 1000):
            for acc in by_the_book.hard_points(real / count, -255, 255, 2**18, 1):
                assert library.mean(acc, count, m, shift) == by_the_book.tflite_mean(acc, real, 1.0, count)
    codes = torch.arange(-255, 256, 3)
    a, b = codes.repeat_interleave(len(codes)), codes.repeat(len(codes))
    for scales in ((0.1, 0.1, 0.2), (0.013, 0.7, 0.5), (0.5, 0.03, 0.031)):
        wanted_sums = [by_the_book.tflite_add(x, y, scales, 20) for x, y in zip(a.tolist(), b.tolist(), strict=True)]
        assert added(library, a, b, scales).tolist() == wanted_sums


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "operations"),
    [
        ("resnet8_qat_w2a2", {"input", "conv2d", "add", "requantize", "mean", "flatten", "linear"}),
        ("mnv1_050_cifar10_qat_w4a4", {"input", "conv2d", "mean", "flatten", "linear"}),
        ("mnv2_050_cifar10_qat_w3a3", {"input", "conv2d", "add", "requantize", "mean", "flatten", "linear"}),
    ],
)
def test_every_node_of_a_shipped_network_to_the_code(library: ctypes.CDLL, name: str, operations: set[str]) -> None:
    net = zoo.load(name, integer=True)
    program = net.program
    codes: dict[str, torch.Tensor] = {}
    for node in program.nodes:
        net.graph_module.get_submodule(node.name).register_forward_hook(
            lambda _, x, y, name=node.name: codes.update({name: y.clone().long()})
        )
    channels, *size = program.input_shape
    picture = np.random.default_rng(2).integers(0, 256, (*size, channels), dtype=np.uint8)
    net(net.preprocess(picture)[None])

    assert {node.op for node in program.nodes} == operations
    for node in program.nodes[1:]:
        if node.op == "flatten":
            continue
        sources, out = [program.format_of(i) for i in node.inputs], node.out
        x = [codes[i] for i in node.inputs]
        assert out is not None
        if node.op == "add":
            steps = added(library, *x, (sources[0].scale, sources[1].scale, out.scale))
        elif node.op == "mean":
            m, shift = multiplier(library, sources[0].scale / out.scale)
            sums = x[0].sum((2, 3), keepdim=True)
            count = x[0].shape[2] * x[0].shape[3]
            steps = torch.tensor([library.mean(int(a), count, m, shift) for a in sums.flatten()]).reshape(sums.shape)
        elif node.op == "requantize":
            steps = requantized(library, x[0], [sources[0].scale / out.scale] * x[0].shape[1])
        else:
            weight, bias = (program.tensors[f"{node.name}.{part}"].double() for part in ("weight", "bias"))
            assert f"{node.name}.weight_zero_point" not in program.tensors
            steps = summed(library, program, node, x[0], weight, bias)
        low = max(out.qmin - out.zero_point, 0) if node.attrs.get("act") == "relu" else out.qmin - out.zero_point
        assert torch.equal(steps.clamp(low, out.qmax - out.zero_point), codes[node.name]), node.name


def test_the_vectors_are_those_of_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(program, str(PAGE), "exec"), {})
    made, net = np.load("codes.npz"), zoo.load("mnv1_050_cifar10_qat_w4a4", integer=True)
    first, last = net.program.nodes[0], net.program.nodes[-1]
    assert set(made) == {"picture", "table", *(node.name for node in net.program.nodes)}
    rows = made["picture"].transpose(2, 0, 1)
    assert np.array_equal(np.stack([made["table"][c][row] for c, row in enumerate(rows)]), made[first.name][0])
    assert last.out is not None
    logits = (made[last.name].astype(np.float32) - last.out.zero_point) * np.float32(last.out.scale)
    assert np.array_equal(logits, net(net.preprocess(made["picture"])[None]).numpy())


@pytest.mark.parametrize(
    ("name", "layer", "bits"), [("resnet8_qat_w2a2", "block2.conv1", 2), ("resnet8_qat_w3a3", "block1.conv1", 3),
                                ("resnet8_fashion_w4a4", "block3.conv2", 4)],
)  # fmt: skip
def test_a_layer_of_a_shipped_network_to_the_code(library: ctypes.CDLL, name: str, layer: str, bits: int) -> None:
    from safetensors.torch import load_file

    folder = results_dir() / name / "checkpoint"
    net = zoo.load(folder, integer=True)
    program, node = net.program, net.program.node(layer)
    assert node.weight is not None and node.weight.bits == bits and node.out is not None

    seen: dict[str, Any] = {}
    module = net.graph_module.get_submodule(layer)
    assert isinstance(module, nn.Module)
    module.register_forward_hook(lambda _, x, y: seen.update(x=x[0], y=y))
    rng = np.random.default_rng(1)
    channels, *size = program.input_shape
    net(net.preprocess(rng.integers(0, 256, (*size, channels), dtype=np.uint8))[None])

    packed = load_file(folder / "model.safetensors")[f"{layer}.weight_packed"]
    shape = program.tensors[f"{layer}.weight"].shape
    columns = int(np.prod(shape[1:]))
    fmt = node.weight
    a = (2 if fmt.mid_rise else 1) << fmt.shift
    b = (int(fmt.mid_rise) << fmt.shift) - (a << (bits - 1))
    rows = []
    for row in packed:
        codes = (ctypes.c_int8 * columns)()
        words = row.contiguous().numpy().view(np.uint32).copy()
        library.unpack(words.ctypes.data_as(ctypes.c_void_p), bits, columns, a, b, codes)
        rows.append(list(codes))
    weight = torch.tensor(rows).reshape(shape)

    bias = program.tensors[f"{layer}.bias"].double()
    steps = summed(library, program, node, seen["x"], weight.double(), bias)
    out = node.out
    low = max(out.qmin, out.zero_point) if node.attrs.get("act") == "relu" else out.qmin
    codes = (out.zero_point + steps).clamp(low, out.qmax)
    assert torch.equal(codes - out.zero_point, seen["y"].long()) and len(codes.unique()) > 2
