"""Training a Q-graph whose layers keep their BatchNorm, and the merge into integers."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx, nn

from tests.compiler import needs_compiler
from tests.networks import config, images, small_resnet
from tests.steps.test_steps import apply
from zoo import ranks
from zoo.context import Context, Images
from zoo.errors import DataError, QuantError, RecipeError
from zoo.graph.trace import trace
from zoo.native.kernels import Kernels
from zoo.quant.attach import attach
from zoo.quant.layers import QWeighted
from zoo.quant.learned._learner import Learner
from zoo.quant.merge import merge_batchnorm
from zoo.train import log
from zoo.train import optimizer as optimizers
from zoo.train.loop import Loop

QUANTIZE: list[tuple[str, dict[str, Any]]] = [
    ("quantize", {"batchnorm": "merge"}),
    ("calibrate", {"weight": "mse", "act": "minmax", "images": 64}),
]
SHORT = {"epochs": 2, "batch": 16, "lr": 0.01, "bf16": False, "warm": 0.0, "patience": 99}


def start(
    weight: int = 4, act: int = 4, count: int = 64, mid_rise: bool = False
) -> tuple[fx.GraphModule, Context]:  # fmt: skip
    """Return a float graph some of whose BatchNorm factors are negative or zero, and labelled images."""
    pictures = images(count)
    labels = (pictures[:, 0].mean((1, 2)) > 0).long()
    model = small_resnet()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight[::3] *= -1
                module.weight[1] = 0.0
    parent = trace(model, pictures[:1])
    return parent, Context(config(weight, act, mid_rise), Images(pictures, labels=labels), parent)


def layers(net: fx.GraphModule) -> list[QWeighted]:
    return [m for m in net.modules() if isinstance(m, QWeighted)]


@torch.no_grad()
def test_quantizing_with_batchnorm_kept_changes_nothing_before_calibration() -> None:
    net, ctx = start()
    graph = apply(net, ctx, QUANTIZE[0])
    assert sum(layer.norm is not None for layer in layers(graph)) == 7
    assert torch.allclose(graph(images(8)), net(images(8)), atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("weight", "mid_rise"), [(2, False), (3, False), (4, False), (8, False), (2, True), (4, True)])
def test_merging_keeps_the_function_and_every_code(weight: int, mid_rise: bool) -> None:
    net, ctx = start(weight, 8, mid_rise=mid_rise)
    graph = apply(net, ctx, *QUANTIZE)
    merged = merge_batchnorm(graph)
    assert all(layer.norm is None for layer in layers(merged))
    for before, after in zip(layers(graph), layers(merged), strict=True):
        column = [-1] + [1] * (before.weight.dim() - 1)
        norm = before.norm
        gain = torch.ones(len(before.bias)) if norm is None else norm.weight / (norm.running_var + norm.eps).sqrt()
        wanted = before.quantized_weight() * gain.reshape(column)
        assert torch.allclose(after.quantized_weight(), wanted, atol=1e-6, rtol=1e-5)
        if norm is not None:  # what is merged lies on its levels already
            assert torch.allclose(after.weight, wanted, atol=1e-6, rtol=1e-5)
    x, ours, theirs = images(16), graph, merged
    a, b = ours(x), theirs(x)
    # a last-bit difference of a convolution may move a tensor by one code
    assert float((a - b).abs().mean()) < 0.01 * float(a.std())


@pytest.mark.parametrize(("weight", "mid_rise"), [(4, False), (2, True)])
def test_integers_agree_with_the_trained_graph_in_eval_mode(weight: int, mid_rise: bool) -> None:
    net, ctx = start(weight, 8, mid_rise=mid_rise)
    graph = apply(net, ctx, *QUANTIZE, ("train", SHORT))
    assert any(bool((m.norm.weight < 0).any()) for m in layers(graph) if m.norm is not None)
    integer = apply(graph, ctx, ("integerize", {"semantics": "float32"}))
    x = ctx.calibration.at(slice(0, 64))
    with torch.no_grad():
        wanted, got = graph(x), integer(x)
    assert float((wanted.argmax(1) == got.argmax(1)).float().mean()) > 0.95
    assert float((wanted - got).abs().mean()) < 0.05 * float(wanted.std())


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_plus", "pact", "tqt"])
@pytest.mark.parametrize(
    ("optimizer", "native"), [("sgd", False), ("adamw", False), pytest.param("sgd", True, marks=needs_compiler)]
)
@pytest.mark.parametrize("mid_rise", [False, True])
def test_every_quantizer_learns(
    quantizer: str, optimizer: str, native: bool, mid_rise: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = calls(monkeypatch)
    net, ctx = start(3, 4, mid_rise=mid_rise)
    rate = {"sgd": {"lr": 0.05}, "adamw": {"lr": 0.005}}[optimizer]
    settings = SHORT | {"epochs": 6, "quantizer": quantizer, "optimizer": optimizer, "augment": False} | rate
    settings["native"] = native
    before = apply(net, ctx, *QUANTIZE)
    trained = apply(before, ctx, ("train", settings))
    log = ctx.log["train"]
    assert ("normed_forward" in used and "normed_backward" in used) == native == bool(used)
    assert log["loss_last_epoch"] < 0.8 * log["loss_first"]
    moved = [not torch.equal(a.out.scale, b.out.scale) for a, b in zip(layers(before), layers(trained), strict=True)]
    assert all(moved) and all(layer.out.learner is None for layer in layers(trained))
    apply(trained, ctx, ("integerize", {}))


def alike(graph: fx.GraphModule, one: fx.GraphModule, other: fx.GraphModule, tolerance: float = 0.001) -> None:
    """Check that two trainings of a graph, a step long, differ by no more than the order of their sums."""
    for name, old in graph.state_dict().items():
        step, same = (net.state_dict()[name].float() - old.float() for net in (one, other))
        assert float((step - same).norm()) <= tolerance * float(step.norm()) + 1e-6, name
        assert not name.endswith("weight") or float(step.norm()) > 0, name


@pytest.mark.parametrize("quantizer", ["lsq_plus", "pact"])
def test_a_compiled_training_is_the_same_training(quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # tracing and autograd are what may differ; code generation is PyTorch's own and needs a C++ compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr("shutil.which", lambda name: name)
    # BatchNorm and range as one operation sum in another order, which moves a code now and then
    monkeypatch.setattr(Learner, "normed", lambda *_: None)
    net, ctx = start(4, 8)
    graph = apply(net, ctx, *QUANTIZE)
    settings = SHORT | {"epochs": 1, "batch": 64, "quantizer": quantizer}
    plain, compiled = (apply(graph, ctx, ("train", settings | {"compile": c})) for c in (False, True))
    alike(graph, plain, compiled)


@needs_compiler
@pytest.mark.parametrize("quantizer", ["lsq", "lsq_plus", "pact", "tqt"])
def test_a_native_training_is_the_same_training(quantizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "normed", lambda *_: None)  # as above
    used = calls(monkeypatch)
    net, ctx = start(4, 8)
    graph = apply(net, ctx, *QUANTIZE)
    settings = SHORT | {"epochs": 1, "batch": 64, "quantizer": quantizer}
    plain = apply(graph, ctx, ("train", settings))
    assert not used
    native = apply(graph, ctx, ("train", settings | {"native": True}))
    assert set(used) == {"range_forward", "range_backward"}
    alike(graph, plain, native)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list that will hold the names of the kernels called."""
    used: list[str] = []
    call = Kernels._call
    monkeypatch.setattr(Kernels, "_call", lambda self, name, *rest: (used.append(name), call(self, name, *rest))[1])
    return used


@needs_compiler
def test_a_native_training_of_a_float_network_is_the_same_training() -> None:
    net, ctx = start()
    settings = SHORT | {"epochs": 1, "batch": 64}
    plain, native = (apply(net, ctx, ("train", settings | {"native": n})) for n in (False, True))
    # an element that is zero but for the order of sums passes the ReLU in one of them
    alike(net, plain, native, tolerance=0.03)
    assert any(not torch.equal(a, b) for a, b in zip(plain.parameters(), native.parameters(), strict=True))
    assert [type(m) for m in native.children()] == [type(m) for m in plain.children()]


@needs_compiler
@pytest.mark.parametrize("quantized", [False, True])
def test_a_native_training_computes_strided_depthwise_layers(quantized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = calls(monkeypatch)
    pictures = images(64)
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, 2, 1, groups=8), nn.BatchNorm2d(8), nn.ReLU()]
    net = trace(nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)), pictures[:1])
    ctx = Context(config(8, 8), Images(pictures, labels=(pictures[:, 0].mean((1, 2)) > 0).long()), net)
    graph = apply(net, ctx, *QUANTIZE) if quantized else net
    settings = SHORT | {"epochs": 1, "batch": 64, "bf16": True}
    plain, native = (apply(graph, ctx, ("train", settings | {"native": n})) for n in (False, True))
    assert used.count("depthwise_forward") == used.count("depthwise_backward") == 1
    for name, old in graph.state_dict().items():
        if name.endswith("weight"):
            step, same = (trained.state_dict()[name] - old for trained in (plain, native))
            # what bfloat16's 8 bits leave of a gradient
            assert float((step - same).norm()) < 0.2 * float(step.norm()), name
    assert all(getattr(m, "kernels", None) is None for m in native.modules())


@pytest.mark.parametrize("quantizer", ["lsq", "lsq_plus", "pact", "tqt"])
def test_a_step_on_a_gpu_waits_for_no_value(quantizer: str) -> None:
    net, ctx = start(4, 4)
    graph = apply(net, ctx, *QUANTIZE)
    # a device without values: whoever reads one gets an error
    graph = graph.to("meta").train()
    learners = attach(graph, quantizer, False)
    parameters, _ = optimizers.groups(graph, lr=0.1, weight_decay=0.0, lr_scale=0.1)
    for parameter in parameters:
        parameter.requires_grad_(True)
    graph(torch.empty(8, 3, 16, 16, device="meta")).sum().backward()
    for learner in learners:
        learner.limit()
    assert len(parameters) > 20 and all(p.grad is not None for p in parameters)


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    net, ctx = start()
    with pytest.raises(RecipeError, match=r"train\.compile: none of g\+\+"):
        apply(net, ctx, *QUANTIZE, ("train", SHORT | {"compile": True}))


def test_steps_for_folded_layers_refuse_batchnorm_in_a_layer() -> None:
    net, ctx = start()
    for name in ("gptq", "adaround", "reconstruct", "distill", "correct_bias"):
        with pytest.raises(QuantError, match="fold_batchnorm"):
            apply(net, ctx, *QUANTIZE, (name, {}))


def test_settings_that_a_graph_has_no_use_for_are_refused() -> None:
    net, ctx = start()
    with pytest.raises(RecipeError, match="Q-graph"):
        apply(net, ctx, ("train", {"dampen": {}}))
    with pytest.raises(RecipeError, match="teacher"):
        apply(net, ctx, ("train", {"distill": 0.5}))
    with pytest.raises(QuantError, match="calibrate"):
        apply(net, ctx, QUANTIZE[0], ("train", {}))
    with pytest.raises(RecipeError, match="known: lsq, lsq_plus, pact, tqt"):
        apply(net, ctx, ("train", {"quantizer": "lsqq"}))


def test_a_second_training_averages_no_mask() -> None:
    net, ctx = start(3, 4)
    train = ("train", SHORT | {"ema": 0.9, "sparsify": {"kind": "2:4"}})
    masks = [m.mask for m in layers(apply(net, ctx, *QUANTIZE, train, train)) if m.mask is not None]
    assert masks
    for mask in masks:
        fours = mask.movedim(1, -1).reshape(-1, 4)
        assert bool(((mask == 0) | (mask == 1)).all()) and bool((fours.sum(1) == 2).all())


def test_a_training_after_reestimation_has_the_moving_averages_of_one_before() -> None:
    net, ctx = start()
    before = apply(net, ctx, *QUANTIZE)
    again = apply(before, ctx, ("reestimate_batchnorm", {"batches": 2}))
    momenta = [[m.norm.momentum for m in layers(g) if m.norm is not None] for g in (before, again)]
    assert momenta[0] == momenta[1] and None not in momenta[0]


@pytest.mark.parametrize("setting", [{"dampen": {}}, {"freeze": {}}, {"standardize": True}])
def test_a_stabilizer_without_weights_of_few_bits_is_refused(setting: dict[str, Any]) -> None:
    net, ctx = start(8, 8)
    graph = apply(net, ctx, *QUANTIZE)
    (name,) = setting
    with pytest.raises(RecipeError, match=rf"train\.{name}: no layer has weights of 4 or fewer bits"):
        apply(graph, ctx, ("train", SHORT | setting))


def test_what_this_graph_has_no_use_for_is_refused() -> None:
    net, ctx = start(8, 8)
    folded = apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {}), QUANTIZE[1])
    few_net, few_ctx = start(4, 4)
    few = apply(few_net, few_ctx, ("fold_batchnorm", {}), ("quantize", {}), QUANTIZE[1])
    for graph, context, setting, message in (
        (net, ctx, {"lr_scale": 0.01}, "quantizer and lr_scale are for a Q-graph"),
        (net, ctx, {"quantizer": "tqt"}, "quantizer and lr_scale are for a Q-graph"),
        (net, ctx, {"batch": 1}, "BatchNorm needs two images or more"),
        (folded, ctx, {"oscillations": True}, "oscillations: no layer has weights of 4 or fewer bits"),
        (few, few_ctx, {"standardize": True}, "no layer of few bits has a BatchNorm"),
        (few, few_ctx, {"quantizer": "pact", "freeze": {}}, "pact takes the scale from the weights"),
    ):
        with pytest.raises(RecipeError, match=message):
            apply(graph, context, ("train", SHORT | setting))


@pytest.mark.parametrize("holdout", [100, 64, 63])
def test_too_many_images_held_out_are_refused(holdout: int) -> None:
    net, ctx = start(count=64)
    with pytest.raises(DataError, match=f"64 images, {holdout} of them held out; lower train.holdout"):
        apply(net, ctx, ("train", SHORT | {"holdout": holdout}))


def test_scales_that_are_powers_of_two_have_no_use_for_a_learner_but_tqt() -> None:
    net, ctx = start()
    formats = {name: replace(getattr(ctx.quant, name), scale="pow2") for name in ("weight", "act", "input", "logits")}
    ctx.quant = replace(ctx.quant, **formats)
    graph = apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {}), QUANTIZE[1])
    for setting in ({"quantizer": "lsq_plus"}, {"lr_scale": 0.5}):
        with pytest.raises(RecipeError, match="every scale is a power of two, which tqt alone learns"):
            apply(graph, ctx, ("train", SHORT | setting))
    apply(graph, ctx, ("train", SHORT | {"quantizer": "tqt", "lr_scale": 0.5}))
    with pytest.raises(QuantError, match="raise lr_weight or lr_bias"):
        apply(graph, ctx, ("distill", {"lr_weight": 0.0, "lr_bias": 0.0, "bf16": False}))


def test_training_integers_is_refused() -> None:
    net, ctx = start()
    with pytest.raises(RecipeError, match="nothing to learn; put train before integerize"):
        apply(net, ctx, *QUANTIZE, ("integerize", {}), ("train", SHORT))


def test_tensorboard_is_missed_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_TENSORBOARD", "somewhere")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(Loop, "run", lambda *_: pytest.fail("the training began"))
    net, ctx = start()
    with pytest.raises(DataError, match=r"install lowbit-zoo\[tensorboard\]"):
        apply(net, ctx, *QUANTIZE, ("train", SHORT))


@pytest.mark.parametrize("leader", [True, False])
def test_the_first_process_alone_writes_for_tensorboard(leader: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []

    class Writer:
        def __enter__(self) -> Writer:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def add_scalar(self, name: str, value: float, epoch: int) -> None:
            written.append(name)

    monkeypatch.setattr(log, "tensorboard", lambda: Writer)
    monkeypatch.setattr(ranks, "leader", lambda: leader)
    row = {"position": 2, "lr": 0.1, "loss": 1.0, "accuracy": 50.0, "holdout": None, "epoch": 1}
    log._tensorboard(row)
    assert written == (["2/lr", "2/loss", "2/accuracy"] if leader else [])
