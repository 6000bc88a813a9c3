"""The parts of a training, each against what it promises."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import fx, nn

from tests.train.interrupted import SETTINGS, context, train
from zoo.errors import QuantError, RecipeError
from zoo.graph.trace import trace
from zoo.quant.attach import attach
from zoo.quant.layers import QWeighted
from zoo.quant.learned._sawb import Sawb
from zoo.quant.learned.lsq_plus import LsqPlus
from zoo.recipe import Step, make_step
from zoo.train import loop, standardize
from zoo.train.ema import Average
from zoo.train.freeze import Freeze, Frozen
from zoo.train.layers import low_bit, weight_codes, weight_scale
from zoo.train.log import Epoch, Log
from zoo.train.objective import Objective
from zoo.train.oscillate import Oscillations
from zoo.train.schedule import SCHEDULES, rise
from zoo.train.sparsify import Sparsify, largest, two_of_four

PLAIN = {"epochs": 2, "batch": 16, "lr": 0.01, "bf16": False, "patience": 99}


def q_graph(weight_steps: int = 2) -> fx.GraphModule:
    """Return a calibrated Q-graph of 3-bit weights with BatchNorm."""
    ctx = context()
    net = ctx.parent
    for name, fields in (("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 16})):
        net = make_step(Step(name, dict(fields)), "test")(net, ctx)
    return net


def weighted(net: fx.GraphModule) -> list[QWeighted]:
    return [m for m in net.modules() if isinstance(m, QWeighted)]


def test_schedules_warm_up_and_fall() -> None:
    for name, f in SCHEDULES.items():
        values = [f(i, 100, warm=0.1) for i in range(100)]
        assert values[0] == pytest.approx(0.1) and max(values) == pytest.approx(1.0, abs=0.02)
        assert values == sorted(values) if name == "constant" else values[-1] < 0.02
    assert rise(0, 100, 0.25, 0.1, 0.01) == 0.1 and rise(100, 100, 0.25, 0.1, 0.01) == pytest.approx(0.01)


def test_objective_is_cross_entropy_and_scaled_divergence() -> None:
    torch.manual_seed(0)
    logits, target, labels = torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 5
    teaching = (target.softmax(1) * (target.log_softmax(1) - logits.log_softmax(1))).sum(1).mean()
    entropy = nn.functional.cross_entropy(logits, labels)
    assert torch.allclose(Objective(share=0.3)(logits, labels, target), 0.7 * entropy + 0.3 * teaching)
    warm = Objective(share=1.0, temperature=2.0)(logits, labels, target)
    soft = ((target / 2).softmax(1) * ((target / 2).log_softmax(1) - (logits / 2).log_softmax(1))).sum(1).mean()
    assert torch.allclose(warm, 4 * soft)


def test_average_follows_its_formula() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    average = Average(net, 0.999)
    expected = 1.0
    for n in range(3):
        nn.init.constant_(net.weight, float(n))
        average.update(net)
        decay = (1 + n) / (10 + n)
        expected = decay * expected + (1 - decay) * n
    average.write(net)
    assert float(net.weight.detach()) == pytest.approx(expected)


def test_a_run_at_chance_or_with_nan_is_refused() -> None:
    log = Log(0, 10, 2)
    with pytest.raises(QuantError, match="step 7"):
        log.finite(torch.tensor(float("nan")), 7)
    for right in (10, 90, 10):
        log.close(Epoch(2.3, right, 100, 1), step=1, lr=0.1, holdout=None)
    with pytest.raises(QuantError, match="2 epochs at chance"):
        log.close(Epoch(2.3, 14, 100, 1), step=1, lr=0.1, holdout=None)
    with pytest.raises(QuantError, match="not finite"):
        train(None, PLAIN | {"lr": 1e30})


def test_masks_keep_the_largest() -> None:
    weight = torch.tensor([[3.0, -1.0, 0.5, -2.0], [0.1, 0.2, 0.3, 0.4]]).reshape(2, 4, 1, 1)
    assert two_of_four(weight).flatten(1).tolist() == [[1, 0, 0, 1], [0, 0, 1, 1]]
    assert largest(weight, 0.5).flatten(1).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]


@pytest.mark.parametrize("kind", ["magnitude", "2:4"])
def test_zeros_reach_the_integers(kind: str) -> None:
    ctx = context()
    net = ctx.parent
    settings = PLAIN | {"epochs": 8, "sparsify": {"kind": kind, "share": 0.5, "until": 0.25}}
    steps = [
        ("quantize", {"batchnorm": "merge"}),
        ("calibrate", {"images": 16}),
        ("train", settings),
    ]
    for ctx.position, (name, fields) in enumerate([*steps, ("integerize", {})]):
        net = make_step(Step(name, dict(fields)), "test")(net, ctx)
    program = net.meta["program"]
    names = [n.name for n in program.nodes if n.weight is not None]
    zeros = [float((program.tensors[f"{n}.weight"] == 0).float().mean()) for n in names]
    # the first layer stays dense; the others have at least the zeros of the mask
    assert all(share >= 0.5 for share in zeros[1:])
    if kind == "2:4":
        codes = program.tensors[f"{names[1]}.weight"].movedim(1, -1).reshape(-1, 4)
        assert int((codes != 0).sum(1).max()) <= 2


def test_dampening_pulls_weights_to_their_bins() -> None:
    def distance(extra: dict[str, object]) -> float:
        ctx = context()
        net = ctx.parent
        settings = PLAIN | {"epochs": 6, "lr": 0.05} | extra
        for name, fields in (("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 16}), ("train", settings)):
            net = make_step(Step(name, dict(fields)), "test")(net, ctx)
        with torch.no_grad():
            layer = weighted(net)[1]
            return float((layer.latent() - layer.quantized_weight()).square().mean())

    assert distance({"dampen": {"weight": 300.0, "start": 0.0}}) < 0.5 * distance({})


@torch.no_grad()
def test_a_weight_that_oscillates_is_frozen_at_its_mean_integer() -> None:
    net = q_graph()
    layer = weighted(net)[1]
    scale = weight_scale(layer).expand_as(layer.weight)
    layer.weight.copy_(scale * 0.9)
    frozen = Frozen(net, Freeze(high=0.05, low=0.05, momentum=0.02, start=0.0))
    frozen.update(0, 100)
    for i in range(40):
        # mostly at 1, now and then at 0
        layer.weight[0, 0, 0, 0] = scale[0, 0, 0, 0] * (0.1 if i % 4 == 0 else 0.9)
        frozen.update(i + 1, 100)
    mask = frozen.state["0.frozen"]
    assert bool(mask[0, 0, 0, 0]) and int(mask.sum()) == 1 and 0 < frozen.share() < 1
    layer.weight[0, 0, 0, 0] = -10.0
    frozen.update(41, 100)
    assert float(weight_codes(layer)[0, 0, 0, 0]) == 1.0
    # its frequency remembers, but it moves no more
    assert float(frozen.state["0.frequency"][0, 0, 0, 0]) > 0.005
    facts = frozen.facts()
    assert facts["oscillating_percent"] == 0.0 and facts["frozen_percent"] > 0
    assert set(facts["oscillating_percent_by_layer"].values()) == {0.0}  # type: ignore[attr-defined]


@torch.no_grad()
def test_a_weight_oscillates_that_goes_back_not_one_that_goes_on() -> None:
    net = q_graph()
    layer = weighted(net)[1]
    (name,) = (n for n, m in net.named_modules() if m is layer)
    scale = float(weight_scale(layer).flatten()[0])
    layer.weight.zero_()
    seen = Oscillations(net, momentum=0.01)
    for i in range(12):
        layer.weight[0, 0, 0, 0] = scale * (1 - i % 2)
        layer.weight[0, 0, 0, 1] = scale * min(i, 3)
        seen.update(i, 12)
    # twelve changes, of which the first has none before it; the moving average of eleven ones
    frequency = seen.state[f"{seen.names.index(name)}.frequency"]
    assert float(frequency[0, 0, 0, 0]) == pytest.approx(1 - 0.99**11, rel=1e-5)
    assert int((frequency > 0).sum()) == 1
    facts = seen.facts()
    assert facts["oscillating_percent_by_layer"][name] == pytest.approx(100 / layer.weight.numel(), abs=1e-3)
    assert facts["oscillating_percent"] == pytest.approx(100 / sum(m.weight.numel() for m in low_bit(net)), abs=1e-3)


@torch.no_grad()
def test_a_batchnorm_factor_that_crosses_zero_moves_no_weight() -> None:
    net = q_graph()
    layer = weighted(net)[1]
    assert layer.norm is not None
    # three codes on either side of zero: those beyond are clipped on one side
    torch.manual_seed(0)
    layer.weight.copy_(torch.randint(-3, 4, layer.weight.shape) * weight_scale(layer))
    layer.norm.weight.fill_(1e-3)
    frozen = Frozen(net, Freeze())
    frozen.state["0.frozen"][:, 0] = True
    before, codes = layer.weight.clone(), frozen.state["0.codes"].clone()
    assert int(codes.count_nonzero()) > 0
    for factor in (-1e-3, 1e-3, -1e-3):
        layer.norm.weight.fill_(factor)
        frozen.update(0, 10)
        assert torch.equal(layer.quantized_weight(), before)
        assert torch.equal(layer.weight, before) and torch.equal(frozen.state["0.codes"], codes)
    assert not frozen.state["0.frequency"].any()


def test_frozen_weights_keep_their_integers_in_the_average() -> None:
    held: list[tuple[torch.Tensor, torch.Tensor]] = []

    class Seen(Frozen):
        def facts(self) -> dict[str, object]:
            held.extend((self.state[f"{i}.codes"], self.state[f"{i}.frozen"]) for i in range(len(self.seen.layers)))
            return super().facts()

    ctx = context()
    net = q_graph()
    settings = SETTINGS | {"epochs": 12, "lr": 1.0, "lr_scale": 0.1, "ema": 0.99, "dampen": None}
    settings["freeze"] = {"start": 0.1, "low": 0.2, "high": 0.2, "momentum": 0.1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zoo.steps.train.Frozen", Seen)
        trained = make_step(Step("train", settings), "test")(net, ctx)
    assert held and any(bool(frozen.any()) for _, frozen in held)
    for layer, (codes, frozen) in zip(low_bit(trained), held, strict=True):
        assert torch.equal(weight_codes(layer)[frozen], codes[frozen])


@pytest.mark.parametrize("kind", ["magnitude", "2:4"])
def test_masks_keep_the_largest_of_the_weights_that_are_quantized(kind: str) -> None:
    net = q_graph()
    standardize.start(net)
    layer = weighted(net)[1]
    with torch.no_grad():
        layer.weight.add_(torch.linspace(0.0, 3.0, len(layer.weight)).reshape(-1, 1, 1, 1))
    Sparsify(kind).update(net, 5, 10)  # type: ignore[arg-type]
    assert layer.standard_deviation is not None and layer.mask is not None
    mean = layer.weight.detach().mean((1, 2, 3), keepdim=True)
    deviation = layer.weight.detach().std((1, 2, 3), keepdim=True)
    seen = (layer.weight.detach() - mean) / deviation * layer.standard_deviation.reshape(-1, 1, 1, 1)
    fours = seen.abs().movedim(1, -1).reshape(-1, 4) if kind == "2:4" else seen.abs().reshape(1, -1)
    kept = layer.mask.movedim(1, -1).reshape(-1, 4) if kind == "2:4" else layer.mask.reshape(1, -1)
    least = fours.masked_fill(kept == 0, math.inf).amin(1)
    assert bool((fours.masked_fill(kept == 1, 0.0).amax(1) <= least * 1.0001).all()) and 0 < kept.mean() < 1


def test_only_the_residual_network_has_offsets_to_learn() -> None:
    for residual in (False, True):
        ctx = context(64, residual)
        net = ctx.parent
        for name, fields in (("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 16})):
            net = make_step(Step(name, dict(fields)), "test")(net, ctx)
        learners = attach(net, "lsq_plus", False)
        assert any(isinstance(n, LsqPlus) and n.offset is not None for n in learners) == residual


@pytest.mark.parametrize(("total", "until"), [(10, 0.5), (16, 0.5), (20, 1.0), (30, 0.9), (1, 0.5)])
def test_magnitude_masks_reach_their_share_however_short_the_training(total: int, until: float) -> None:
    net = q_graph()
    sparsify = Sparsify("magnitude", 0.5, until)
    for step in range(total):
        sparsify.update(net, step, total)
    shares = [float((m.mask == 0).float().mean()) for m in sparsify.layers(net) if m.mask is not None]
    assert shares and shares == pytest.approx([0.5] * len(shares), abs=0.01)


def test_a_second_training_keeps_what_is_masked() -> None:
    net = q_graph()
    sparsify = Sparsify("magnitude", 0.5, 0.5)
    for step in range(40):
        sparsify.update(net, step, 40)
    before = [m.mask.clone() for m in sparsify.layers(net) if m.mask is not None]
    for step in range(40):
        sparsify.update(net, step, 40)
        assert all(
            torch.equal(m.mask, b) for m, b in zip(sparsify.layers(net), before, strict=True) if m.mask is not None
        )
    # more is taken on top of it
    Sparsify("magnitude", 0.75, 0.5).update(net, 20, 40)
    for layer, b in zip(sparsify.layers(net), before, strict=True):
        assert layer.mask is not None and not bool(layer.mask[b == 0].any())
        assert float((layer.mask == 0).float().mean()) == pytest.approx(0.75, abs=0.02)


@pytest.mark.parametrize(("classes", "right", "stops"), [(1, 100, False), (2, 74, False), (2, 54, True), (10, 14, True),
                                                         (10, 16, False)])  # fmt: skip
def test_what_counts_as_chance(classes: int, right: int, stops: bool) -> None:
    log = Log(0, classes, 1)
    epoch = Epoch(2.3, right, 100, 1)
    if stops:
        with pytest.raises(QuantError, match="1 epochs at chance"):
            log.close(epoch, step=1, lr=0.1, holdout=None)
    else:
        log.close(epoch, step=1, lr=0.1, holdout=None)


def test_the_last_scale_of_pact_is_that_of_the_last_weight() -> None:
    for more in ({}, {"ema": 0.9}):
        trained = make_step(Step("train", PLAIN | {"lr": 0.1, "quantizer": "pact"} | more), "test")(
            q_graph(), context()
        )
        for layer in weighted(trained):
            fresh = Sawb(layer.weight_quantizer)
            fresh.measure(layer.latent().detach(), layer.weight_quantizer)
            assert torch.equal(fresh.last, layer.weight_quantizer.scale)


def test_channels_of_one_weight_are_not_normalised() -> None:
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), nn.BatchNorm2d(8)]
    torch.manual_seed(1)
    ctx = context()
    net = trace(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval(),
                ctx.calibration.at(slice(0, 1)))  # fmt: skip
    settings = PLAIN | {"standardize": True}
    for name, fields in (("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 16}), ("train", settings)):
        net = make_step(Step(name, dict(fields)), "test")(net, ctx)
    assert ctx.curves and all(bool(layer.weight.isfinite().all()) for layer in weighted(net))


def test_normalised_weights_become_the_layers_own() -> None:
    ctx = context()
    net = ctx.parent
    settings = PLAIN | {"standardize": True}
    for name, fields in (("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 16}), ("train", settings)):
        net = make_step(Step(name, dict(fields)), "test")(net, ctx)
    low = weighted(net)[1]
    assert low.standard_deviation is None and float(low.weight.flatten(1).mean(1).abs().max()) < 1e-6


def test_change_bits_keeps_the_range_and_refuses_what_is_not_there() -> None:
    net, ctx = q_graph(), context()
    wider = make_step(Step("change_bits", {"old": 3, "new": 5}), "test")(net, ctx)
    before, after = (weighted(n)[1].weight_quantizer for n in (net, wider))
    assert (after.fmt.bits, before.fmt.bits) == (5, 3) and torch.allclose(after.scale * 4, before.scale)
    assert weighted(wider)[0].weight_quantizer.fmt.bits == 8
    with torch.no_grad():
        x = context().calibration.at(slice(0, 8))
        ends = [quantizer.range()[0] for quantizer in (before, after)]
        assert torch.allclose(*ends) and wider(x).shape == net(x).shape
    with pytest.raises(RecipeError, match="7 bits"):
        make_step(Step("change_bits", {"old": 7, "new": 5}), "test")(net, ctx)
    layer = weighted(net)[1].weight_quantizer
    layer.fmt = replace(layer.fmt, mid_rise=True)
    with pytest.raises(RecipeError, match=r"change_bits: mid_rise is for 2\.\.4 bits, got 8"):
        make_step(Step("change_bits", {"old": 3, "new": 8}), "test")(net, ctx)


def test_without_a_work_folder_nothing_is_written_and_the_result_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    first, ctx = train(None, SETTINGS)
    assert not list(tmp_path.iterdir())
    second, _ = train(tmp_path / "work", SETTINGS)
    assert all(torch.equal(t, second[n]) for n, t in first.items())
    assert len(ctx.curves) == SETTINGS["epochs"] and math.isfinite(ctx.curves[-1]["holdout"])
