"""The reconstruction error of a layer as a quadratic form of its weight, so that no image is needed to minimise it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from zoo.context import Context
from zoo.errors import QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QConv2d, QWeighted
from zoo.steps._walk import Visit, float_twin, require_calibrated, require_zero_level, walk

DAMPINGS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
KEPT = 1 << 28  # numbers of a layer's inputs held at a time: a gigabyte


class Settings(Protocol):
    """The fields by which a step collects quadratic forms."""

    @property
    def images(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def damping(self) -> float | None: ...
    @property
    def scales(self) -> int: ...
    @property
    def passes(self) -> int: ...


@dataclass
class Quadratic:
    """``error(W) = sum (W - best) H (W - best)^T``: mean squared output error on calibration images, plus damping.

    For G groups of m outputs with d inputs each: ``hessian`` [G, d, d], ``best`` [G, m, d], the means of inputs [G, d]
    and targets [G, m]. Means are taken out, because the bias follows: ``b = mean(y) - W mean(x)``. ``variance`` is that
    of the targets, ``residual`` the part of it that ``best`` leaves, both summed over the outputs.
    """

    hessian: Tensor
    best: Tensor
    mean_input: Tensor
    mean_target: Tensor
    variance: float = 1.0
    residual: float = 0.0

    def error(self, weight: Tensor) -> Tensor:
        """Return the error of ``weight`` [..., G, m, d] for each output: [..., G, m]."""
        difference = weight - self.best
        return ((difference @ self.hessian) * difference).sum(-1)

    def share(self, weight: Tensor) -> float:
        """Return the share of the targets' variance that is lost with ``weight`` [G, m, d]."""
        return (self.residual + float(self.error(weight).sum())) / max(self.variance, 1e-30)

    def bias(self, weight: Tensor) -> Tensor:
        """Return the bias [G m] under which the mean output is the target's."""
        return (self.mean_target - (weight @ self.mean_input[..., None])[..., 0]).reshape(-1)


@torch.no_grad()
def round_layers(
    net: fx.GraphModule, ctx: Context, name: str, step: Settings, choose: Callable[[QWeighted, Quadratic], Tensor]
) -> fx.GraphModule:
    """Return the Q-graph with every weight on the codes [G, m, d] that ``choose`` gives, and the bias that follows.

    Layers are settled in the order of computation; the log has the share of variance that each one loses. Raises
    QuantError, naming the step, for an uncalibrated graph and for mid-rise weights.
    """
    require_calibrated(net, name)
    require_zero_level(net, name)
    net = clone(net)
    batches = list(ctx.calibration.batches(step.batch, step.images))
    generator = ctx.generator()
    total = sum(isinstance(m, QWeighted) for m in net.modules())
    lost: dict[str, float] = {}
    for visit in ctx.progress(walk(net, float_twin(net), batches), name, total):
        form = quadratic(visit, step.samples, step.damping, generator, step.passes)
        search_scales(visit.layer, form, step.scales)
        settle(visit.layer, form, choose(visit.layer, form))
        lost[visit.name] = round(form.share(grouped(visit.layer, visit.layer.weight)), 4)
    ctx.log[name] = {"lost": lost}
    return net


def quadratic(
    visit: Visit, samples: int, damping: float | None, generator: torch.Generator, passes: int = 0
) -> Quadratic:
    """Collect the quadratic form over at least ``samples`` output positions drawn at random from all batches.

    Inputs are the quantized ones, targets the float twin's outputs, so errors of earlier layers are made good where
    they can be (Nagel et al. 2020, eq. 25). ``damping``, relative to the mean diagonal, pulls ``best`` towards the
    layer's weight; None takes the one of ``DAMPINGS`` under which each half of the images serves the other half best.
    With ``passes`` > 0 only errors that pass the layer's activation and its quantizer's clamp count: see
    ``_through_clamp``.
    """
    layer = visit.layer
    weight = grouped(layer, layer.weight).double()
    groups, _, width = weight.shape
    share = -(-_positions(samples, groups, width, passes > 0) // len(visit.inputs))
    halves = (_Sums(weight), _Sums(weight))
    kept: list[tuple[Tensor, Tensor]] = []
    for i, (x, y) in enumerate(zip(visit.inputs, visit.targets(), strict=True)):
        rows, target = _draw(layer, x, y, share, groups, generator)
        halves[i % 2].add(rows, target)
        if passes:
            kept.append((rows, target))
    sums = halves[0] + halves[1]
    if damping is None:
        damping = _cross_validated(halves, weight) if len(visit.inputs) > 1 else 0.01
    factor, prior = sums.damped(damping, weight)
    best = torch.cholesky_solve(sums.moment + prior, factor).transpose(1, 2)
    mean_y, residual = sums.mean_y, sums.variance + sums.excess(best)
    if passes:
        band = passband(layer)
        best, mean_y, residual = _through_clamp(kept, factor, prior, best, sums.mean_x, mean_y, band, passes)
    hessian = (factor @ factor.transpose(1, 2)).float()
    best = best.contiguous().float()
    return Quadratic(hessian, best, sums.mean_x.float(), mean_y.float(), sums.variance, max(residual, 0.0))


class _Sums:
    """First and second moments of inputs [G, p, d] and targets [G, p, m], in float64."""

    def __init__(self, weight: Tensor) -> None:
        groups, outputs, width = weight.shape
        self.xx, self.xy = weight.new_zeros(groups, width, width), weight.new_zeros(groups, width, outputs)
        self.x, self.y = weight.new_zeros(groups, width), weight.new_zeros(groups, outputs)
        self.yy, self.count = 0.0, 0

    def add(self, rows: Tensor, target: Tensor) -> None:
        self.x += rows.sum(1, dtype=torch.float64)
        self.y += target.sum(1, dtype=torch.float64)
        self.xx += (rows.transpose(1, 2) @ rows).double()
        self.xy += (rows.transpose(1, 2) @ target).double()
        self.yy += float(target.square().sum(dtype=torch.float64))
        self.count += rows.shape[1]

    def __add__(self, other: _Sums) -> _Sums:
        both = copy.copy(self)
        for name, value in vars(other).items():
            setattr(both, name, getattr(self, name) + value)
        return both

    @property
    def mean_x(self) -> Tensor:
        return self.x / self.count

    @property
    def mean_y(self) -> Tensor:
        return self.y / self.count

    @property
    def hessian(self) -> Tensor:
        return self.xx / self.count - self.mean_x[:, :, None] * self.mean_x[:, None, :]

    @property
    def moment(self) -> Tensor:
        return self.xy / self.count - self.mean_x[:, :, None] * self.mean_y[:, None, :]

    @property
    def variance(self) -> float:
        return self.yy / self.count - float(self.mean_y.square().sum())

    def damped(self, damping: float, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the Cholesky factor of the damped Hessian, and what the damping adds to the moment."""
        hessian = self.hessian
        diagonal = hessian.diagonal(dim1=1, dim2=2)
        # products were summed in float32: where a channel hardly varies, the difference of large moments is but error
        least = 1e-6 * self.xx.diagonal(dim1=1, dim2=2).mean(1, keepdim=True) / self.count
        ridge = torch.maximum(damping * diagonal.mean(1, keepdim=True), least).clamp(min=1e-12)
        kept = diagonal.clone()
        for _ in range(16):
            diagonal.copy_(kept + ridge)
            factor, failed = torch.linalg.cholesky_ex(hessian)
            if not bool(failed.any()):
                return factor, ridge[:, :, None] * weight.transpose(1, 2)
            ridge = torch.where(failed[:, None] > 0, 10 * ridge, ridge)
        raise QuantError("a layer's inputs or targets are not finite; look at the network's weights and images")

    def excess(self, weight: Tensor) -> float:
        """Return the mean squared error of a weight [G, m, d] less the variance of the targets."""
        return float(((weight @ self.hessian - 2 * self.moment.transpose(1, 2)) * weight).sum())


def _cross_validated(halves: tuple[_Sums, _Sums], weight: Tensor) -> float:
    """Return the damping of least error of each half's solution on the other half."""

    def error(damping: float) -> float:
        total = 0.0
        for ours, theirs in (halves, halves[::-1]):
            factor, prior = ours.damped(damping, weight)
            total += theirs.excess(torch.cholesky_solve(ours.moment + prior, factor).transpose(1, 2))
        return total

    return min(DAMPINGS, key=error)


def passband(layer: QWeighted) -> tuple[float, float]:
    """Return the real values between which an output passes the layer's activation and its quantizer's clamp."""
    low, high = (float(end) for end in layer.out.range())
    return (max(low, 0.0) if layer.act else low), (min(high, 6.0) if layer.act == "relu6" else high)


def _through_clamp(
    kept: list[tuple[Tensor, Tensor]], factor: Tensor, prior: Tensor, best: Tensor, mean_x: Tensor, mean_y: Tensor,
    band: tuple[float, float], passes: int,
) -> tuple[Tensor, Tensor, float]:  # fmt: skip
    """Return weight, mean output and error: the least, where an output outside the ``band`` need only stay outside.

    A target within the band is to be met; one below costs nothing while the prediction is below too (censored
    regression, Tobin 1958, by least squares). Majorize and minimize: a pass replaces each target by the nearest value
    that costs nothing now, and solves for it with the one factored Hessian [G, d, d]; the cost, which is convex, falls
    with each pass, and Nesterov's extrapolation makes fewer of them do. Plain least squares shrinks towards the mean
    as inputs get noisier, which silences channels that fire seldom.
    """
    low, high = band
    bias = mean_y - (best @ mean_x[..., None])[..., 0]
    before, before_bias, t = best, bias, 1.0
    count = sum(rows.shape[1] for rows, _ in kept)
    for _ in range(passes):
        t, previous = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        ahead = (previous - 1) / t
        weight = (best + ahead * (best - before)).transpose(1, 2).float()
        shift = (bias + ahead * (bias - before_bias)).float()[:, None]
        before, before_bias = best, bias
        moment, total, cost = torch.zeros_like(prior), torch.zeros_like(mean_y), 0.0
        for rows, target in kept:
            guess = rows @ weight + shift
            free = torch.where(target >= high, guess.clamp(min=high), target)
            free = torch.where(target <= low, guess.clamp(max=low), free)
            cost += float((guess - free).square().sum())
            total += free.sum(1, dtype=torch.float64)
            moment += (rows.transpose(1, 2) @ free).double()
        mean_y = total / count
        moment = moment / count - mean_x[:, :, None] * mean_y[:, None, :]
        best = torch.cholesky_solve(moment + prior, factor).transpose(1, 2)
        bias = mean_y - (best @ mean_x[..., None])[..., 0]
    return best, mean_y, cost / count


def _positions(samples: int, groups: int, width: int, keep: bool) -> int:
    """Return how many output positions to draw: enough for the layer's width, and to keep no more than fit memory."""
    fits = max(KEPT // (groups * width), 256) if keep else samples
    return max(min(samples, fits), 16 * width)


def grouped(layer: QWeighted, weight: Tensor) -> Tensor:
    """Return a weight as [G, m, d]."""
    groups = layer.groups if isinstance(layer, QConv2d) else 1
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def per_output(layer: QWeighted, value: Tensor) -> Tensor:
    """Return a scale or zero point as [G, m, 1]."""
    groups = layer.groups if isinstance(layer, QConv2d) else 1
    return value.detach().expand(layer.weight.shape[0]).reshape(groups, -1, 1)


@torch.no_grad()
def search_scales(layer: QWeighted, form: Quadratic, candidates: int) -> None:
    """Give every channel the scale, of ``candidates`` shrunken ones, under which rounding to nearest costs least.

    Below 4 bits the calibrated scale is tried too: with so few codes the best may be less than 0.3 of the largest.
    """
    quantizer = layer.weight_quantizer
    if candidates == 0 or quantizer.fmt.scale != "float" or quantizer.axis is None:
        return
    full = form.best.abs().amax(-1, keepdim=True) / quantizer.qmax if quantizer.fmt.symmetric else None
    start = per_output(layer, quantizer.scale) if full is None else full.clamp(min=1e-12)
    zero = per_output(layer, quantizer.zero_point)
    least, kept = torch.full_like(start[..., 0], float("inf")), start
    scales = [start * (1.0 - 0.7 * i / candidates) for i in range(candidates)]
    if quantizer.fmt.bits < 4:
        scales.append(per_output(layer, quantizer.scale).to(start.dtype))
    for scale in scales:
        codes = (torch.round(form.best / scale) + zero).clamp(quantizer.qmin, quantizer.qmax)
        error = form.error((codes - zero) * scale)
        kept = torch.where((error < least)[..., None], scale, kept)
        least = torch.minimum(error, least)
    quantizer.set_qparams(kept.reshape(-1), quantizer.zero_point)


def settle(layer: QWeighted, form: Quadratic, codes: Tensor) -> None:
    """Write the weight of these codes [G, m, d] (zero point included) and the bias that goes with it."""
    quantizer = layer.weight_quantizer
    real = (codes - per_output(layer, quantizer.zero_point)) * per_output(layer, quantizer.scale)
    layer.weight.data = real.reshape(layer.weight.shape).contiguous()
    layer.bias.data = form.bias(real)


def _draw(
    layer: QWeighted, x: Tensor, y: Tensor, share: int, groups: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return input rows [G, p, d] and targets [G, p, m] of ``share`` random output positions."""
    if not isinstance(layer, QConv2d):
        return x[None], y[None]
    kernel, stride, dilation = layer.weight.shape[2:], layer.stride, layer.dilation
    left, right, top, bottom = layer.pad
    windows = F.pad(x, (left, right, top, bottom))
    for axis in (0, 1):
        windows = windows.unfold(2 + axis, (kernel[axis] - 1) * dilation[axis] + 1, stride[axis])
    windows = windows[..., :: dilation[0], :: dilation[1]]
    n, _, height, width = y.shape
    total = n * height * width
    picked = torch.randperm(total, generator=generator)[:share]
    image, row, column = picked // (height * width), picked // width % height, picked % width
    rows = windows[image, :, row, column].reshape(len(picked), groups, -1).transpose(0, 1)
    target = y[image, :, row, column].reshape(len(picked), groups, -1).transpose(0, 1)
    return rows.contiguous(), target.contiguous()
