"""Levels half a step beside zero: from the quantizer to the integers and the bytes of a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.compiler import needs_compiler
from tests.networks import start
from tests.steps.test_steps import apply
from zoo.artifact.codec import decode, encode
from zoo.errors import ArtifactError, QuantError, RecipeError
from zoo.integer.program import Program
from zoo.native.kernels import kernels
from zoo.pipeline import quantization_config
from zoo.quant.learned.lsq import Lsq
from zoo.quant.learned.pact import Pact
from zoo.quant.learned.tqt import Tqt
from zoo.quant.observers.mse import Mse
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format, Override, QuantConfig, change

KINDS = [Lsq, Tqt, Pact]


def quantizer(bits: int, channels: int = 4, granularity: str = "per_channel") -> Quantizer:
    fmt = Format(bits, granularity=granularity, mid_rise=True)  # type: ignore[arg-type]
    return Quantizer(fmt, signed=True, channels=channels)


def calibrated(bits: int, rows: Tensor, granularity: str = "per_channel") -> Quantizer:
    made = quantizer(bits, len(rows), granularity)
    seen = rows if granularity == "per_channel" else rows.reshape(1, -1)
    made.set_range(*Mse().range(seen, seen.amin(1), seen.amax(1), made))
    return made


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_levels_are_the_odd_multiples_of_half_a_step(bits: int, granularity: str) -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 500) * torch.tensor([[1.0], [0.1], [3.0], [1.0]])
    q = calibrated(bits, rows, granularity)
    sign = torch.tensor([1.0, -1.0, -1.0, 1.0])
    for signs in (None, sign):
        column = q.scale.detach()[:, None] * (1.0 if signs is None else signs[:, None])
        # the nearest odd multiple of half a step, from first principles
        nearest = (2 * torch.floor(rows / column) + 1).clamp(-(2**bits) + 1, 2**bits - 1)
        assert torch.equal(2 * q.codes(rows, signs) + 1, nearest)
        wanted = nearest * (column / 2)
        exact = bits == 2  # of more bits a sum of two rounded terms
        assert torch.allclose(q(rows, signs), wanted, rtol=0 if exact else 1e-6, atol=0)
        assert torch.equal(q.codes(wanted, signs), q.codes(rows, signs))
    low, high = q.range()
    assert torch.equal(low, -high) and torch.allclose(high, q.scale * (2 ** (bits - 1) - 0.5))


def test_two_bits_lose_less_than_those_of_twos_complement() -> None:
    # the normal distribution, as 20,000 of its quantiles
    rows = torch.special.ndtri((torch.arange(20_000) + 0.5) / 20_000)[None].float()
    # Max (1960), table II: four evenly spaced levels of a normal distribution lose 0.1188 of its variance at best
    q = quantizer(2, 1)
    q.set_range(*Mse(p=2.0, candidates=400).range(rows, rows.amin(1), rows.amax(1), q))
    assert float((q(rows) - rows).square().mean()) == pytest.approx(0.1188, abs=0.003)
    assert float(q.scale.detach()) == pytest.approx(0.9957, abs=0.02)  # the step of that table


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("native", [False, pytest.param(True, marks=needs_compiler)])
def test_a_learner_quantizes_as_the_quantizer_and_learns_the_same_gradient(kind: type[Lsq], native: bool) -> None:
    torch.manual_seed(0)
    rows, grad = torch.randn(4, 200), torch.randn(4, 200)
    q = calibrated(2, rows)
    learner = kind.make(q, weight=True, relative=False)
    learner.kernels = kernels() if native else None
    leaf = rows.clone().requires_grad_()
    y = learner(leaf, q)
    y.backward(grad)
    learner.settle(q)
    assert torch.equal(y.detach(), q(rows))
    scale = q.scale.detach()[:, None]
    inside = (rows / scale).abs() < 1.5
    assert leaf.grad is not None and torch.equal(leaf.grad, grad * inside)
    if kind is Lsq:
        # Esser et al. 2020, eq. 3, with levels in place of integers
        levels = y.detach() / scale
        slope = torch.where(inside, levels - rows / scale, levels)
        wanted = (grad * slope).sum(1) / math.sqrt(200 * q.qmax)
        assert torch.allclose(next(learner.parameters()).grad, wanted, rtol=1e-4, atol=1e-5)


def test_the_distilled_scale_has_the_same_gradient() -> None:
    torch.manual_seed(0)
    rows, grad = torch.randn(4, 200), torch.randn(4, 200)
    q = calibrated(2, rows)
    learner = Lsq(q, weight=True, relative=False)
    learner(rows, q).backward(grad)
    q.scale.requires_grad_()
    q(rows).backward(grad)
    assert q.scale.grad is not None and torch.allclose(q.scale.grad, learner.value.grad, rtol=1e-4, atol=1e-5)


def test_a_channel_of_zeros_stays_near_zero() -> None:
    rows = torch.zeros(4, 9)
    q = calibrated(2, rows)
    assert 0 < float(q(rows).abs().max()) < 1e-11


def made(bits: int) -> tuple[Program, torch.fx.GraphModule, torch.fx.GraphModule, Tensor]:
    net, ctx = start(bits, 8, mid_rise=True)
    graph = apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {}), ("calibrate", {"weight": "mse", "images": 64}))
    integer = apply(graph, ctx, ("integerize", {"semantics": "tflite"}))
    return integer.meta["program"], graph, integer, ctx.calibration.at(slice(0, 64))


@pytest.mark.parametrize("bits", [2, 3, 4])
@torch.no_grad()
def test_the_integer_network_has_odd_codes_and_the_simulated_function(bits: int) -> None:
    program, graph, integer, x = made(bits)
    named = {node.name: node.weight for node in program.nodes if node.weight is not None}
    inner = [name for name, weight in named.items() if weight.mid_rise]
    assert len(inner) == len(named) - 2
    for name in inner:
        codes = program.tensors[f"{name}.weight"].int()
        assert bool((codes % 2 == 1).all()) and int(codes.abs().max()) == 2**bits - 1
        layer = graph.get_submodule(name)
        scale = program.tensors[f"{name}.weight_scale"].reshape(-1, 1, 1, 1)
        assert torch.allclose(codes * scale, layer.quantized_weight(), rtol=1e-6, atol=0)
    assert float((graph(x).argmax(1) == integer(x).argmax(1)).float().mean()) > 0.95


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_checkpoint_returns_every_code_in_as_few_bits(bits: int) -> None:
    program = made(bits)[0]
    tensors, nodes = encode(program)
    read = decode(tensors, nodes, list(program.input_shape), "here")
    assert read.nodes == program.nodes
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in program.tensors.items())
    name = next(node.name for node in program.nodes if node.weight is not None and node.weight.mid_rise)
    words = tensors[f"{name}.weight_packed"]
    columns = program.tensors[f"{name}.weight"][0].numel()
    assert words.shape[1] <= math.ceil(columns / 32) * bits
    plain = next(node for node in nodes if "weight" in node and node["name"] != name and node["weight"]["bits"] == 8)
    assert "mid_rise" not in plain["weight"]  # checkpoints from before keep their bytes
    groups = quantization_config(program, "tflite")["config_groups"]
    assert groups[f"group_w{bits}_mid_rise"]["weights"]["mid_rise"] is True
    assert "mid_rise" not in groups["group_w8"]["weights"]
    for wrong in ({"bits": 8}, {"symmetric": False}, {"narrow": True}, {"mid_rise": 1}, {"half": True}):
        other = [n | {"weight": n["weight"] | wrong} if n["name"] == name else n for n in nodes]
        with pytest.raises(ArtifactError, match=r"mid_rise|flags|needs exactly"):
            decode(tensors, other, list(program.input_shape), "here")


def test_the_bytes_by_hand() -> None:
    from tests.artifact.test_codec import act, program, raw
    from zoo.integer.program import WeightFormat

    # -3, -1, 1, 3 become 0, 1, 2, 3, from the lowest bits up 0b11100100
    two = WeightFormat(2, symmetric=True, per_channel=False, mid_rise=True)
    tensors, _ = encode(program(torch.tensor([[-3, -1, 1, 3]]), two, act(8, False)))
    assert raw(tensors["fc.weight_packed"]) == "e4000000"


@pytest.mark.parametrize("step", ["gptq", "adaround", "reconstruct"])
def test_steps_that_round_to_integers_refuse_it(step: str) -> None:
    net, ctx = start(2, 8, mid_rise=True)
    graph = apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {}), ("calibrate", {"images": 64}))
    with pytest.raises(QuantError, match=f"{step}: weights have mid-rise levels"):
        apply(graph, ctx, (step, {}))


def test_pruning_needs_a_zero() -> None:
    net, ctx = start(2, 8, mid_rise=True)
    graph = apply(net, ctx, ("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 64}))
    with pytest.raises(QuantError, match=r"train\.sparsify: weights have mid-rise levels"):
        apply(graph, ctx, ("train", {"sparsify": {"kind": "2:4"}}))


def test_where_it_cannot_be() -> None:
    for fields in ({"symmetric": False}, {"narrow": True}, {"bits": 8}):
        with pytest.raises(ValueError, match="mid_rise"):
            Format(**({"bits": 2, "mid_rise": True} | fields))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"act\.mid_rise must be false"):
        QuantConfig(act=Format(4, mid_rise=True))
    with pytest.raises(RecipeError, match=r"here\.act\.mid_rise"):
        change(Format(4), Override("*", act={"mid_rise": True}), "act", "here")
    # the base says mid_rise, an override of 8 bits has to say that it is not
    with pytest.raises(RecipeError, match="set mid_rise: false"):
        change(Format(2, mid_rise=True), Override(":first", weight={"bits": 8}), "weight", "here")
