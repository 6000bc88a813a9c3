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
from zoo.integer.semantics._fixed_point import DoubleRounding, quantize_multiplier
from zoo.native.library import compiler
from zoo.paths import results_dir

pytestmark = needs_compiler
PAGE = Path(__file__).resolve().parents[2] / "docs" / "deploy.md"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    (code,) = re.findall(r"```c\n(.*?)```", PAGE.read_text(), re.S)
    folder = tmp_path_factory.mktemp("deploy")
    (folder / "deploy.c").write_text(code)
    words = ["-x", "c", "-std=c99", "-Wall", "-Wextra", "-Werror", "-O2", "-shared", "-fPIC"]
    found = compiler()
    assert found is not None
    subprocess.run([*found, *words, "-o", "deploy.so", "deploy.c", "-lm"], cwd=folder, check=True)
    return ctypes.CDLL(str(folder / "deploy.so"))


def requantized(library: ctypes.CDLL, acc: torch.Tensor, factors: list[float]) -> torch.Tensor:
    """Return what the C gives for accumulators ``[N, C, ...]``, one factor per channel."""
    out = torch.empty_like(acc)
    for channel, factor in enumerate(factors):
        m, shift = ctypes.c_int32(), ctypes.c_int()
        library.multiplier(ctypes.c_double(factor), ctypes.byref(m), ctypes.byref(shift))
        assert (m.value, shift.value) == quantize_multiplier(factor)
        flat = [library.requantize(int(a), m, shift) for a in acc[:, channel].flatten()]
        out[:, channel] = torch.tensor(flat).reshape(acc[:, channel].shape)
    return out


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


@pytest.mark.parametrize(
    ("name", "layer", "bits"), [("resnet8_qat_w2a2", "block2.conv1", 2), ("resnet8_qat_w3a3", "block1.conv1", 3),
                                ("resnet8_fashion_w4a4", "block3.conv2", 4)],
)  # fmt: skip
def test_a_layer_of_a_shipped_network_to_the_code(library: ctypes.CDLL, name: str, layer: str, bits: int) -> None:
    from safetensors.torch import load_file

    folder = results_dir() / name / "checkpoint"
    net = zoo.load(folder, integer=True)
    program, node = net.program, net.program.node(layer)
    source = program.format_of(node.inputs[0])
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

    attrs = node.attrs
    x = F.pad(seen["x"].double(), tuple(attrs["pad"]))
    acc = F.conv2d(x, weight.double(), None, tuple(attrs["stride"]), 0, tuple(attrs["dilation"]), attrs["groups"])
    acc += program.tensors[f"{layer}.bias"].double().reshape(1, -1, 1, 1)
    scales = program.tensors[f"{layer}.weight_scale"].double().tolist()
    steps = requantized(library, acc.long(), [source.scale * s / node.out.scale for s in scales])
    out = node.out
    low = max(out.qmin, out.zero_point) if attrs.get("act") == "relu" else out.qmin
    codes = (out.zero_point + steps).clamp(low, out.qmax)
    assert torch.equal(codes - out.zero_point, seen["y"].long()) and len(codes.unique()) > 2
