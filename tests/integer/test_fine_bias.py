"""Weights of few bits at the top of a byte: the codes stay, the accumulator's steps become fine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import fx

from tests.networks import start
from tests.steps.test_steps import apply
from zoo.artifact.codec import decode, encode
from zoo.context import Context
from zoo.errors import ArtifactError
from zoo.integer.program import Program
from zoo.pipeline import quantization_config
from zoo.quant.layers import QWeighted

SEMANTICS = ["tflite", "float32"]  # floor loses more in residual sums than here


def calibrated(bits: int, mid_rise: bool = False, symmetric: bool = True) -> tuple[fx.GraphModule, Context]:
    net, ctx = start(bits, 2, mid_rise=mid_rise)
    weight = replace(ctx.quant.weight, symmetric=symmetric)
    ctx = replace(ctx, quant=replace(ctx.quant, weight=weight, overrides=()))
    steps = [("fold_batchnorm", {}), ("quantize", {}), ("calibrate", {"weight": "mse", "images": 64})]
    return apply(net, ctx, *steps), ctx


def programs(graph: fx.GraphModule, ctx: Context, semantics: str = "tflite") -> list[Program]:
    """Return what integerize makes without and with fine biases."""
    made = [apply(graph, ctx, ("integerize", {"semantics": semantics, "fine_bias": fine})) for fine in (False, True)]
    return [net.meta["program"] for net in made]


@pytest.mark.parametrize(("bits", "mid_rise", "symmetric", "shift"), [
    (2, False, True, 6), (3, False, True, 5), (4, False, True, 4), (8, False, True, 0), (2, True, True, 5),
    (4, True, True, 3), (4, False, False, 3), (6, False, True, 2), (7, False, False, 0),
])  # fmt: skip
def test_weights_stay_and_biases_are_rounded_to_finer_steps(
    bits: int, mid_rise: bool, symmetric: bool, shift: int
) -> None:
    graph, ctx = calibrated(bits, mid_rise, symmetric)
    coarse, fine = programs(graph, ctx, "float32")
    for before, after in zip(coarse.nodes, fine.nodes, strict=True):
        if after.weight is None:
            assert before == after
            continue
        assert before.weight is not None and before.weight.shift == 0 and after.weight.shift == shift
        old, new = (p.tensors[f"{after.name}.weight"].int() for p in (coarse, fine))
        zeros = [p.tensors.get(f"{after.name}.weight_zero_point", torch.zeros(1)).reshape(-1, *[1] * (old.dim() - 1))
                 for p in (coarse, fine)]  # fmt: skip
        assert torch.equal(new, old * 2**shift) and torch.equal(zeros[1], zeros[0] * 2**shift)
        assert int((new - zeros[1]).min()) >= -128 and int((new - zeros[1]).max()) <= 255 >> (shift > 0)
        scales = [p.tensors[f"{after.name}.weight_scale"] for p in (coarse, fine)]
        assert torch.equal(scales[1] * 2**shift, scales[0])
        # both are the same real number, rounded
        biases = [p.tensors[f"{after.name}.bias"].double() for p in (coarse, fine)]
        assert float((biases[1] - biases[0] * 2**shift).abs().max()) <= 2**shift / 2 + 0.5


@pytest.mark.parametrize("semantics", SEMANTICS)
@torch.no_grad()
def test_integers_are_nearer_to_the_trained_function(semantics: str) -> None:
    graph, ctx = calibrated(2)
    for module in graph.modules():
        if isinstance(module, QWeighted):  # a bias of a few coarse steps, as BatchNorm gives
            module.bias += torch.linspace(-0.4, 0.4, len(module.bias))
    x = ctx.calibration.at(slice(0, 64))
    wanted = graph(x)
    errors = []
    for fine in (False, True):
        net = apply(graph, ctx, ("integerize", {"semantics": semantics, "fine_bias": fine}))
        errors.append(float((net(x) - wanted).abs().mean()))
    assert errors[1] < 0.3 * errors[0]


@pytest.mark.parametrize(
    ("bits", "mid_rise", "symmetric"), [(2, True, True), (3, False, True), (4, False, False), (6, False, True)]
)
def test_a_checkpoint_holds_the_same_codes(bits: int, mid_rise: bool, symmetric: bool) -> None:
    graph, ctx = calibrated(bits, mid_rise, symmetric)
    coarse, fine = programs(graph, ctx)
    (old, _), (tensors, nodes) = encode(coarse), encode(fine)
    kept = [name for name in tensors if name.endswith(("weight_packed", "weight_zero_point"))]
    assert kept and all(torch.equal(old[name], tensors[name]) for name in kept)
    read = decode(tensors, nodes, list(fine.input_shape), "here")
    assert read.nodes == fine.nodes
    (group,) = quantization_config(fine, "tflite")["config_groups"].values()
    assert group["weights"]["shift"] == 8 - bits - int(mid_rise or not symmetric)
    (group,) = quantization_config(coarse, "tflite")["config_groups"].values()
    assert "shift" not in group["weights"]
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in fine.tensors.items())


@pytest.mark.parametrize("shift", [-1, 7, True, 1.0, "6"])
def test_wrong_shifts_are_refused(shift: object) -> None:
    graph, ctx = calibrated(2)
    tensors, nodes = encode(programs(graph, ctx)[1])
    nodes = [n | {"weight": n["weight"] | {"shift": shift}} if "weight" in n else n for n in nodes]
    with pytest.raises(ArtifactError, match=r"weight\.shift: must be 0\.\.6"):
        decode(tensors, nodes, [3, 16, 16], "here")
