from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch import fx, nn

from tests.networks import images, small_resnet, start
from zoo.context import Context, Images
from zoo.errors import DataError, GraphError, QuantError, RecipeError
from zoo.graph.trace import trace
from zoo.preprocess import Preprocess
from zoo.quant.layers import QNode, QWeighted
from zoo.quant.spec import Format, Override, QuantConfig
from zoo.recipe import Step as Named
from zoo.recipe import make_step
from zoo.steps._walk import float_twin, walk
from zoo.steps.calibrate import _Seen

CHAIN: list[tuple[str, dict[str, Any]]] = [
    ("fold_batchnorm", {}),
    ("quantize", {}),
    ("calibrate", {"weight": "mse", "act": "minmax", "images": 64}),
]


def apply(net: fx.GraphModule, ctx: Context, *steps: tuple[str, dict[str, Any]]) -> fx.GraphModule:
    for i, (name, settings) in enumerate(steps):
        ctx.position = i
        net = make_step(Named(name, settings), "test")(net, ctx)
    return net


@torch.no_grad()
def error(net: nn.Module, ctx: Context) -> float:
    """Mean squared difference of the logits to the float parent's over the parent's variance."""
    x = ctx.calibration.at(slice(0, len(ctx.calibration)))
    wanted = ctx.parent(x)
    return float((net(x) - wanted).square().mean() / wanted.var())


def test_folding_and_quantizing_without_calibration_change_nothing() -> None:
    net, ctx = start()
    graph = apply(net, ctx, *CHAIN[:2])
    assert not any(isinstance(m, nn.BatchNorm2d) for m in graph.modules())
    assert error(graph, ctx) < 1e-8


@pytest.mark.parametrize("act", ["minmax", "percentile", "mse", "kl"])
@pytest.mark.parametrize("weight", ["minmax", "mse"])
def test_eight_bits_follow_the_float_network(weight: str, act: str) -> None:
    net, ctx = start(8, 8)
    assert error(apply(net, ctx, *CHAIN[:2], ("calibrate", {"weight": weight, "act": act})), ctx) < 1e-3


@pytest.mark.parametrize(
    "step",
    [
        ("correct_bias", {"images": 64}),
        ("gptq", {"images": 64}),
        ("adaround", {"images": 64, "iterations": 100}),
        ("reconstruct", {"images": 64, "iterations": 30, "drop": 0.0, "weights": "latent"}),
        ("reconstruct", {"images": 64, "iterations": 60, "rate": 0.02}),
        ("distill", {"epochs": 10, "batch": 16, "mse": 1.0, "augment": False}),
        ("distill", {"epochs": 10, "batch": 16, "features": 1.0, "augment": False}),
    ],
    ids=lambda s: s[0],
)
def test_steps_that_repair_four_bit_weights_do(step: tuple[str, dict[str, Any]]) -> None:
    net, ctx = start(4, 8)
    before = apply(net, ctx, *CHAIN)
    first = error(before, ctx)
    kept = {n: t.clone() for n, t in before.state_dict().items()}
    after = apply(before, ctx, step)
    # bias correction alone only moves the means, so little is asked of it
    assert error(after, ctx) < first * (0.999 if step[0] == "correct_bias" else 0.8)
    assert all(torch.equal(t, kept[n]) for n, t in before.state_dict().items()), "a step changed the graph it was given"


@pytest.mark.parametrize("name", ["gptq", "adaround"])
def test_rounding_steps_leave_weights_on_the_grid(name: str) -> None:
    net, ctx = start(3, 8)
    graph = apply(net, ctx, *CHAIN, (name, {"images": 64} | ({"iterations": 20} if name == "adaround" else {})))
    for module in graph.modules():
        if isinstance(module, QWeighted):
            assert torch.allclose(module.quantized_weight(), module.weight, atol=1e-6)


def test_the_same_seed_gives_the_same_bits() -> None:
    results = []
    for _ in range(2):
        net, ctx = start(4, 4)
        steps = (("gptq", {"images": 32}), ("reconstruct", {"images": 32, "iterations": 3}), ("distill", {"epochs": 1}))
        results.append(apply(net, ctx, *CHAIN, *steps).state_dict())
    assert all(torch.equal(t, results[1][n]) for n, t in results[0].items())


def test_equalize_evens_ranges_and_keeps_the_function() -> None:
    torch.manual_seed(0)
    depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), depthwise, nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].weight.mul_(torch.logspace(-1, 1, 8).reshape(-1, 1, 1, 1))
    net = trace(model.eval(), images(2))
    ctx = Context(QuantConfig(), Images(images(32)), net)
    equalized = apply(net, ctx, ("equalize", {}))
    assert torch.allclose(equalized(images(4)), net(images(4)), atol=1e-5)

    def spread(graph: fx.GraphModule) -> float:
        ranges = graph.get_submodule("0").weight.detach().flatten(1).abs().amax(1)
        return float(ranges.max() / ranges.min())

    assert spread(equalized) < spread(net) / 3


def test_absorb_bias_keeps_the_function_and_lowers_the_bias() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 4, 1))
    with torch.no_grad():
        model[0].bias.fill_(20.0)
    net = trace(model.eval(), images(2))
    absorbed = apply(net, Context(QuantConfig(), Images(images(32)), net), ("absorb_bias", {}))
    assert float(absorbed.get_submodule("0").bias.detach().max()) < 19
    # what lies more than three standard deviations below the mean is cut
    assert float(((absorbed(images(32)) - net(images(32))).abs() > 1e-3).float().mean()) < 0.02


def test_relu6_becomes_relu() -> None:
    net = trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6()).eval(), images(1))
    replaced = apply(net, Context(QuantConfig(), Images(images(4)), net), ("replace_relu6", {}))
    assert torch.equal(replaced(images(4) * 100), torch.relu(net.get_submodule("0")(images(4) * 100)))


@pytest.mark.parametrize(("count", "counted"), [(96, 96), (66, 64), (20, 20)])
def test_reestimated_statistics_are_those_of_the_images(count: int, counted: int) -> None:
    # a small last batch would count as much as a full one
    net, ctx = start(count=count)
    graph = apply(net, ctx, ("reestimate_batchnorm", {"batches": 3, "batch": 32}))
    first = next(m for m in graph.modules() if isinstance(m, nn.BatchNorm2d))
    y = net.get_submodule("conv")(torch.cat(list(ctx.calibration.batches(count)))[:counted])
    assert first.running_mean is not None
    assert torch.allclose(first.running_mean, y.mean((0, 2, 3)), atol=1e-4)


def test_after_a_training_statistics_are_those_of_augmented_images() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(150, 256, (64, 8, 8, 3), dtype=torch.uint8)
    pictures = Images(pixels, Preprocess((8, 8), (0.0,) * 3, (1.0,) * 3), (torch.arange(64) % 2).long())
    layers = [nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    net = trace(nn.Sequential(*layers, nn.Linear(4, 2)).eval(), pictures.at(slice(0, 1)))

    def ratio(**settings: Any) -> float:
        """Mean of the first convolution over its mean on the pictures as they are."""
        ctx = Context(QuantConfig(), pictures, net)
        train = {"epochs": 1, "batch": 16, "lr": 1e-6, "bf16": False} | settings.pop("train", {})
        trained = apply(net, ctx, ("train", train), ("reestimate_batchnorm", {"batches": 4, "batch": 16} | settings))
        whole = trained.get_submodule("0")(pictures.at(slice(0, 64))).mean((0, 2, 3))
        mean = trained.get_submodule("1").running_mean
        assert isinstance(mean, torch.Tensor)
        return float((mean / whole).mean())

    # a crop at offset d of 8 pixels padded by 4 shows 8 - |d - 4| of them: 52 of 72 in the mean over d = 0 ... 8
    shown = (52 / 72) ** 2
    assert ratio() == pytest.approx(shown, rel=0.1)
    assert ratio(augment=False) == pytest.approx(1.0, rel=1e-4) == ratio(train={"augment": False})
    assert ratio(train={"augment": False}, augment=True) == pytest.approx(shown, rel=0.1)


def test_training_learns() -> None:
    torch.manual_seed(0)
    pictures = images(128)
    labels = (pictures[:, 0].mean((1, 2)) > 0).long()
    net = trace(small_resnet(), pictures[:1])
    ctx = Context(QuantConfig(), Images(pictures, labels=labels), net)
    trained = apply(net, ctx, ("train", {"epochs": 8, "batch": 32, "lr": 0.2, "augment": False, "bf16": False}))
    with torch.no_grad():
        assert float((trained(pictures).argmax(1) == labels).float().mean()) > 0.9
    with pytest.raises(DataError, match="labels"):
        apply(net, Context(QuantConfig(), Images(pictures), net), ("train", {}))


@pytest.mark.parametrize("name", ["correct_bias", "gptq", "adaround", "reconstruct", "distill"])
def test_steps_that_need_calibration_say_so(name: str) -> None:
    net, ctx = start()
    with pytest.raises(QuantError, match="calibrate"):
        apply(net, ctx, *CHAIN[:2], (name, {}))


def test_wrong_order_is_refused() -> None:
    net, ctx = start()
    with pytest.raises(GraphError, match="fold_batchnorm"):
        apply(net, ctx, ("quantize", {}))
    with pytest.raises(GraphError, match="equalize"):
        apply(net, ctx, *CHAIN, ("equalize", {}))
    with pytest.raises(QuantError, match="quantize"):
        apply(net, ctx, ("fold_batchnorm", {}), ("calibrate", {}))
    with pytest.raises(GraphError, match="before fold"):
        apply(net, ctx, ("fold_batchnorm", {}), ("reestimate_batchnorm", {}))


def test_too_few_images_and_overrides_that_match_nothing_are_refused() -> None:
    net, ctx = start(count=8)
    with pytest.raises(DataError, match="8 calibration images"):
        apply(net, ctx, *CHAIN)
    ctx.quant = QuantConfig(weight=Format(bits=8), overrides=(Override("nothing.*", weight={"bits": 4}),))
    with pytest.raises(RecipeError, match=r"nothing\.\*.*matches nothing"):
        apply(net, ctx, *CHAIN[:2])


def test_nan_activations_name_the_layer() -> None:
    net, ctx = start()
    with torch.no_grad():
        net.get_submodule("block2.conv1").weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(QuantError, match=r"block2\.conv1"):
        apply(net, ctx, *CHAIN)


def test_dead_channels_and_constant_activations_survive() -> None:
    net, ctx = start(4, 4)
    folded = apply(net, ctx, CHAIN[0])
    with torch.no_grad():
        folded.get_submodule("block1.conv1").weight[:2] = 0
        folded.get_submodule("block1.conv1").bias[:2] = 1000.0
    ctx.parent = folded
    graph = apply(folded, ctx, *CHAIN[1:], ("gptq", {"images": 64}), ("integerize", {}))
    with torch.no_grad():
        assert bool(torch.isfinite(graph(images(4))).all())


def test_every_node_of_a_calibrated_graph_is_quantized() -> None:
    net, ctx = start()
    graph = apply(net, ctx, *CHAIN)
    for node in graph.graph.nodes:
        if node.op == "call_module":
            module = graph.get_submodule(str(node.target))
            assert isinstance(module, QNode | nn.MaxPool2d | nn.Flatten), node.target
            assert not isinstance(module, QNode) or bool(module.out.ready)


@pytest.mark.parametrize("semantics", ["tflite", "float32", "floor"])
def test_a_channel_of_tiny_weights_does_not_overflow(semantics: str) -> None:
    net, ctx = start(8, 8)
    with torch.no_grad():
        layer = net.get_submodule("block1.conv1")
        layer.weight[2] *= 1e-12
    integer = apply(net, ctx, *CHAIN, ("integerize", {"semantics": semantics}))
    with torch.no_grad():
        assert bool(torch.isfinite(integer(images(4))).all())


def test_nan_in_the_first_batch_alone_is_not_forgotten() -> None:
    seen = _Seen(256)
    for values in ([float("nan"), 1.0], [-1.0, 2.0]):
        seen(nn.Identity(), (torch.tensor(values),))
    with pytest.raises(QuantError, match="here: its output holds NaN"):
        seen.extremes("here")


def test_equalizing_activations_needs_folded_batchnorm_and_something_that_fires() -> None:
    net, ctx = start()
    with pytest.raises(QuantError, match="equalize_activations: the layers still hold their batch normalisation"):
        apply(net, ctx, ("quantize", {"batchnorm": "merge"}), ("equalize_activations", {}))
    torch.manual_seed(0)
    silent = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    with torch.no_grad():
        silent[0].bias.fill_(-100.0)
    net = trace(silent, images(2))
    graph = apply(net, Context(QuantConfig(), Images(images(32)), net), ("quantize", {}), ("equalize_activations", {}))
    assert torch.allclose(graph(images(4)), net(images(4)), atol=1e-5)


@pytest.mark.parametrize(("channels", "outputs"), [(4, 8), (4, 2)])
def test_a_grouped_layer_that_is_not_depthwise_is_left_alone(channels: int, outputs: int) -> None:
    torch.manual_seed(0)
    groups = min(channels, outputs)
    layers = [nn.Conv2d(3, channels, 1), nn.ReLU(), nn.Conv2d(channels, outputs, 3, groups=groups), nn.ReLU()]
    net = trace(nn.Sequential(*layers, nn.Conv2d(outputs, 2, 1)).eval(), images(2))
    for steps in ([("equalize", {})], [("quantize", {}), ("equalize_activations", {})]):
        graph = apply(net, Context(QuantConfig(), Images(images(32)), net), *steps)
        assert torch.allclose(graph(images(4)), net(images(4)), atol=1e-5)


def test_one_image_has_no_statistics() -> None:
    net, ctx = start(count=1)
    with pytest.raises(DataError, match="one image has no variance"):
        apply(net, ctx, ("reestimate_batchnorm", {}))


@pytest.mark.parametrize("step", ["equalize", "absorb_bias", "replace_relu6"])
def test_steps_for_float_graphs_say_where_they_belong(step: str) -> None:
    net, ctx = start()
    with pytest.raises(GraphError, match=f"{step}: the graph is already quantized; put {step} before quantize"):
        apply(net, ctx, ("fold_batchnorm", {}), ("quantize", {}), (step, {}))
    if step != "replace_relu6":
        with pytest.raises(GraphError, match=f"{step}: the graph holds batch normalisation; put fold_batchnorm before"):
            apply(net, ctx, (step, {}))


@pytest.mark.parametrize(
    ("step", "settings", "said"),
    [
        ("distill", {"lr_weight": 0.0, "lr_scale": 0.0, "lr_bias": 0.0}, "one of lr_weight, lr_scale and lr_bias"),
        ("reconstruct", {"rate": 0.0}, "must be positive"),
        ("reconstruct", {"weights": "latent", "lr_weight": 0.0, "lr_scale": 0.0, "lr_bias": 0.0}, "must be positive"),
        ("integerize", {"semantics": "tflte"}, "semantics 'tflte' is unknown; did you mean 'tflite'"),
        ("calibrate", {"percentile": 40.0}, r"percentile must lie in \(50, 100\]"),
    ],
)
def test_settings_that_do_nothing_are_refused_when_a_recipe_is_read(
    step: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        make_step(Named(step, settings), "test")


def test_distilling_features_of_a_single_block_is_refused() -> None:
    torch.manual_seed(0)
    net = trace(nn.Sequential(nn.Flatten(), nn.Linear(3 * 256, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), images(2))
    ctx = Context(QuantConfig(), Images(images(32)), net)
    with pytest.raises(QuantError, match="single block"):
        apply(net, ctx, ("quantize", {}), ("calibrate", {}), ("distill", {"features": 1.0}))


def test_walking_keeps_no_tensor_that_nobody_reads_any_more() -> None:
    net, ctx = start()
    graph = apply(net, ctx, *CHAIN)
    seen: list[weakref.ref[torch.Tensor]] = []
    graph.get_submodule("add").register_forward_hook(lambda module, args, y: seen.append(weakref.ref(y)))
    for visit in walk(graph, float_twin(graph), [images(8)]):
        if visit.name == "fc":
            assert seen and all(tensor() is None for tensor in seen)
