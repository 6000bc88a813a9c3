"""What the steps for activations of few bits promise."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, fx, nn

from tests.networks import config, images
from tests.steps.test_steps import apply, error
from zoo.context import Context, Images
from zoo.errors import QuantError
from zoo.graph import ops
from zoo.graph.trace import trace
from zoo.quant.layers import QConv2d, QLinear
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format
from zoo.steps import gptq
from zoo.steps._least_squares import Quadratic, passband, quadratic, search_scales
from zoo.steps._walk import Visit
from zoo.steps.gptq import descend, round_columns

CALIBRATED = (("quantize", {}), ("calibrate", {"weight": "mse", "act": "mse", "images": 64}))


def layer(outputs: int, inputs: int, bits: int, act: str | None = None, top: float = 1.0) -> QLinear:
    out = Quantizer(Format(bits=8, symmetric=False), signed=False)
    out.set_range(torch.tensor(0.0 if act else -top), torch.tensor(top))
    made = QLinear(nn.Linear(inputs, outputs), Format(bits=bits, symmetric=True, granularity="per_channel"), out, act)
    made.weight_quantizer.set_range(-made.weight.abs().amax(1), made.weight.abs().amax(1))
    return made


def form(outputs: int, inputs: int) -> Quadratic:
    rows = torch.randn(200, inputs) @ torch.randn(inputs, inputs)
    hessian = (rows.T @ rows / len(rows))[None]
    zeros = torch.zeros(1, inputs)
    return Quadratic(hessian, torch.randn(1, outputs, inputs), zeros, torch.zeros(1, outputs))


@pytest.mark.parametrize("block", [None, 5])
def test_coordinate_descent_ends_where_no_single_code_helps(block: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if block:
        monkeypatch.setattr(gptq, "WIDE", 1)
        monkeypatch.setattr(gptq, "BLOCK", block)
    torch.manual_seed(0)
    module, quadratic_form = layer(5, 12, 3), form(5, 12)
    module.weight.data = quadratic_form.best[0].clone()
    first = round_columns(module, quadratic_form)
    before = quadratic_form.error(first * module.weight_quantizer.scale.reshape(1, -1, 1))
    codes = descend(module, quadratic_form, first, sweeps=100)
    scale = module.weight_quantizer.scale.reshape(1, -1, 1)
    least = quadratic_form.error(codes * scale)
    assert bool((least <= before + 1e-4).all()) and float(least.sum()) < float(before.sum())
    for column, delta in itertools.product(range(12), (-1.0, 1.0)):
        moved = codes.clone()
        moved[..., column] = (moved[..., column] + delta).clamp(-4, 3)
        assert bool((quadratic_form.error(moved * scale) >= least - 1e-4).all())


def test_blocks_of_columns_give_the_codes_of_single_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    module, exact = layer(5, 40, 3), form(5, 40)
    # in float64 no sum is near enough to a border between codes for its order to matter
    exact = Quadratic(exact.hessian.double(), exact.best.double(), exact.mean_input, exact.mean_target)
    start = module.weight_quantizer.scale.clone()
    found = []
    for wide in (41, 40):
        monkeypatch.setattr(gptq, "WIDE", wide)
        monkeypatch.setattr(gptq, "BLOCK", 7)
        module.weight_quantizer.set_qparams(start, module.weight_quantizer.zero_point)
        first = round_columns(module, exact)
        found += [first, descend(module, exact, first, sweeps=3)]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("bits", [2, 3])
def test_searched_scales_are_never_worse_than_the_calibrated_ones(bits: int) -> None:
    module = layer(1, 401, bits)
    # one weight far out: the candidates between it and 0.3 of it round the many small ones to nothing
    best = torch.cat([torch.tensor([20.0]), torch.ones(200), -torch.ones(200)]).reshape(1, 1, -1)
    found = Quadratic(torch.eye(401)[None], best, torch.zeros(1, 401), torch.zeros(1, 1))
    quantizer = module.weight_quantizer
    quantizer.set_qparams(torch.tensor([1.0]), quantizer.zero_point)

    def loss() -> float:
        codes = (best / quantizer.scale).round().clamp(quantizer.qmin, quantizer.qmax)
        return float(found.error(codes * quantizer.scale))

    calibrated = loss()
    search_scales(module, found, 20)
    assert loss() <= calibrated < float(found.error(torch.zeros_like(best)))


def censored(prediction: Tensor, target: Tensor, low: float, high: float) -> Tensor:
    inside = (target > low) & (target < high)
    below, above = target <= low, target >= high
    return torch.where(
        inside, prediction - target,
        torch.where(below, (prediction - low).clamp(min=0), torch.where(above, (high - prediction).clamp(min=0), 0.0)),
    ).square()  # fmt: skip


@pytest.mark.parametrize("act", ["relu", "relu6", None])
def test_least_squares_through_the_clamp_finds_the_minimum(act: str | None) -> None:
    torch.manual_seed(0)
    module = layer(4, 6, 4, act, top=2.0)
    low, high = passband(module)
    assert low == 0.0 if act else low < -1.9
    exact = torch.randn(4000, 6) @ torch.randn(6, 6)
    noisy = exact + 1.5 * torch.randn_like(exact)
    visit = Visit("layer", module, list(noisy.split(1000)), module, list(exact.split(1000)))
    found = quadratic(visit, 4000, 1e-6, torch.Generator().manual_seed(0), passes=200)
    target = module.multiply(exact, module.weight).detach()

    def cost(weight: Tensor, bias: Tensor) -> Tensor:
        return censored(noisy @ weight.T + bias, target, low, high).mean()

    weight, bias = found.best[0].clone(), found.bias(found.best).clone()
    ours = float(cost(weight, bias))
    weight.requires_grad_(True), bias.requires_grad_(True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = cost(weight, bias)
        value.backward()
        return value

    optimizer.step(closure)  # type: ignore[arg-type]
    plain = quadratic(visit, 4000, 1e-6, torch.Generator().manual_seed(0))
    assert ours <= float(cost(weight, bias).detach()) * 1.001
    assert ours < 0.98 * float(cost(plain.best[0], plain.bias(plain.best)))


def mobile(dead: tuple[int, ...] = ()) -> tuple[fx.GraphModule, Context]:
    """Pointwise, depthwise, pointwise with ReLU6; the depthwise channels of ``dead`` never fire."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.ReLU6(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(),
        nn.Conv2d(12, 10, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        model[0].weight.mul_(2.0)
        model[2].weight.mul_(2.0)
        for channel in dead:
            model[2].weight[channel], model[2].bias[channel] = 0.0, 0.5
    net = trace(model.eval(), images(2))
    return net, Context(config(8, 4), Images(images(64)), net)


def pointwise(net: fx.GraphModule, ctx: Context) -> Tensor:
    """Return what the last convolution gives, before its own quantizer."""
    seen: list[Tensor] = []
    last = next(m for m in reversed(list(net.modules())) if isinstance(m, QConv2d))
    hook = last.out.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.no_grad():
        net(ctx.calibration.at(slice(0, 64)))
    hook.remove()
    return seen[0]


def noise(net: fx.GraphModule, ctx: Context) -> float:
    module = ctx.parent.get_submodule("4")
    seen: list[Tensor] = []
    hook = module.register_forward_hook(lambda m, args, y: seen.append(y))
    with torch.no_grad():
        ctx.parent(ctx.calibration.at(slice(0, 64)))
    hook.remove()
    difference = pointwise(net, ctx) - seen[0]
    return float((difference - difference.mean((0, 2, 3), keepdim=True)).square().mean())


def test_dead_channels_halve_the_noise_of_the_living() -> None:
    net, ctx = mobile(dead=(1, 2, 4, 6, 9, 11))
    before = apply(net, ctx, *CALIBRATED)
    after = apply(before, ctx, ("reuse_channels", {"images": 64}))
    assert ctx.log["reuse_channels"] == {"2": 6}
    assert noise(after, ctx) < 0.5 * noise(before, ctx)
    assert error(after, ctx) < error(before, ctx)


def test_nothing_is_given_up_below_the_margin() -> None:
    net, ctx = mobile()
    before = apply(net, ctx, *CALIBRATED)
    after = apply(before, ctx, ("reuse_channels", {"images": 64, "margin": 1000.0}))
    assert ctx.log["reuse_channels"] == {}
    assert all(torch.equal(t, after.state_dict()[n]) for n, t in before.state_dict().items())


def test_channels_of_a_grouped_convolution_stand_for_none_but_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), nn.ReLU6(), nn.Conv2d(12, 12, 1, groups=4), nn.ReLU6(),
        nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(), nn.Conv2d(12, 10, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    with torch.no_grad():
        model[4].weight[:6], model[4].bias[:6] = 0.0, 0.5
    net = trace(model.eval(), images(2))
    ctx = Context(config(8, 4), Images(images(64)), net)
    before = apply(net, ctx, *CALIBRATED)
    after = apply(before, ctx, ("reuse_channels", {"images": 64}))
    assert ctx.log["reuse_channels"] == {}
    assert all(torch.equal(t, after.state_dict()[n]) for n, t in before.state_dict().items())


def test_reuse_needs_calibration() -> None:
    net, ctx = mobile()
    with pytest.raises(QuantError, match="not calibrated"):
        apply(net, ctx, ("quantize", {}), ("reuse_channels", {}))


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_equalized_activations_keep_the_function_and_lose_less(strength: float) -> None:
    net, ctx = mobile()
    with torch.no_grad():
        first, second = ctx.parent.get_submodule("0"), ctx.parent.get_submodule("2")
        factor = torch.logspace(-1.5, 0, 12)[:, None, None, None]
        first.weight.mul_(factor / 4)
        first.bias.mul_(factor.flatten() / 4)
        second.weight.mul_(1 / factor)
    quantized = apply(net, ctx, ("quantize", {}))
    even = apply(quantized, ctx, ("equalize_activations", {"images": 64, "strength": strength}))
    assert error(even, ctx) < 1e-8
    calibrate = ("calibrate", {"weight": "mse", "act": "mse", "images": 64})
    assert error(apply(even, ctx, calibrate), ctx) < 0.5 * error(apply(quantized, ctx, calibrate), ctx)


def test_the_wide_layers_draw_no_more_than_memory_holds() -> None:
    from zoo.steps._least_squares import KEPT, _positions

    assert _positions(65536, 1152, 25, True) * 1152 * 25 <= KEPT
    assert _positions(65536, 1, 1280, True) == _positions(65536, 1, 1280, False) == 65536
    assert _positions(10, 1, 1280, True) == 16 * 1280


def test_damping_is_what_serves_images_not_fitted() -> None:
    torch.manual_seed(0)
    module = layer(4, 40, 4, top=100.0)
    exact = torch.randn(128, 40)
    noisy = exact + 0.5 * torch.randn_like(exact)
    visit = Visit("layer", module, list(noisy.split(16)), module, list(exact.split(16)))
    fresh = torch.randn(4000, 40)
    seen = fresh + 0.5 * torch.randn_like(fresh)

    def error(damping: float | None) -> float:
        found = quadratic(visit, 128, damping, torch.Generator().manual_seed(0))
        wanted = module.multiply(fresh, module.weight).detach()
        return float((seen @ found.best[0].T + found.bias(found.best) - wanted).square().mean())

    fixed = [error(d) for d in (1e-3, 1e-2, 1e-1, 1.0, 10.0)]
    assert error(None) < 1.1 * min(fixed) and error(None) < 0.9 * max(fixed)


def test_channels_that_never_vary_have_a_solution() -> None:
    torch.manual_seed(0)
    out = Quantizer(Format(bits=8, symmetric=False), signed=False)
    out.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    module = QConv2d(
        ops.Conv2d(4, 4, (3, 3), pad=(0, 0, 0, 0), groups=4), Format(bits=4, granularity="per_channel"), out
    )
    x = torch.randn(64, 4, 8, 8)
    x[:, 1], x[:, 2], x[:, 3] = 300.0 + 1e-4 * torch.randn(64, 8, 8), 0.0, 1e5 + torch.randn(64, 8, 8)
    visit = Visit("layer", module, list(x.split(16)), module, list(x.split(16)))
    found = quadratic(visit, 2048, None, torch.Generator().manual_seed(0))
    assert bool(torch.isfinite(found.best).all())
    assert float((found.best[0] - module.weight[0].flatten()).abs().max()) < 1e-2


def test_distilling_features_of_channels_that_were_reused_is_refused() -> None:
    net, ctx = mobile(dead=(1, 2, 4, 6, 9, 11))
    reused = apply(net, ctx, *CALIBRATED, ("reuse_channels", {"images": 64}))
    assert ctx.log["reuse_channels"]
    with pytest.raises(QuantError, match="leave features out"):
        apply(reused, ctx, ("distill", {"features": 1.0}))
