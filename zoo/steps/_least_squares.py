"""The reconstruction error of a layer as a quadratic form of its weight, so that no image is needed to minimise it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from zoo.context import Context
from zoo.graph.fold import clone
from zoo.quant.layers import QConv2d, QWeighted
from zoo.steps._walk import Visit, float_twin, require_calibrated, walk


class Settings(Protocol):
    """The fields by which a step collects quadratic forms."""

    @property
    def images(self) -> int: ...
    @property
    def batch(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def damping(self) -> float: ...
    @property
    def scales(self) -> int: ...


@dataclass
class Quadratic:
    """``error(W) = sum (W - best) H (W - best)^T``: mean squared output error on calibration images, plus damping.

    For G groups of m outputs with d inputs each: ``hessian`` [G, d, d], ``best`` [G, m, d], the means of inputs [G, d]
    and targets [G, m]. Means are taken out, because the bias follows: ``b = mean(y) - W mean(x)``.
    """

    hessian: Tensor
    best: Tensor
    mean_input: Tensor
    mean_target: Tensor

    def error(self, weight: Tensor) -> Tensor:
        """Return the error of ``weight`` [..., G, m, d] for each output: [..., G, m]."""
        difference = weight - self.best
        return ((difference @ self.hessian) * difference).sum(-1)

    def bias(self, weight: Tensor) -> Tensor:
        """Return the bias [G m] under which the mean output is the target's."""
        return (self.mean_target - (weight @ self.mean_input[..., None])[..., 0]).reshape(-1)


@torch.no_grad()
def round_layers(
    net: fx.GraphModule, ctx: Context, name: str, step: Settings, choose: Callable[[QWeighted, Quadratic], Tensor]
) -> fx.GraphModule:
    """Return the Q-graph with every weight on the codes [G, m, d] that ``choose`` gives, and the bias that follows.

    Layers are settled in the order of computation. Raises QuantError, naming the step, for an uncalibrated graph.
    """
    require_calibrated(net, name)
    net = clone(net)
    batches = list(ctx.calibration.batches(step.batch, step.images))
    generator = ctx.generator()
    total = sum(isinstance(m, QWeighted) for m in net.modules())
    for visit in ctx.progress(walk(net, float_twin(net), batches), name, total):
        form = quadratic(visit, step.samples, step.damping, generator)
        search_scales(visit.layer, form, step.scales)
        settle(visit.layer, form, choose(visit.layer, form))
    return net


def quadratic(visit: Visit, samples: int, damping: float, generator: torch.Generator) -> Quadratic:
    """Collect the quadratic form over at least ``samples`` output positions drawn at random from all batches.

    Inputs are the quantized ones, targets the float twin's outputs, so errors of earlier layers are made good where
    they can be (Nagel et al. 2020, eq. 25, without its activation). ``damping``, relative to the mean diagonal, pulls
    ``best`` towards the layer's weight.
    """
    layer = visit.layer
    groups = layer.groups if isinstance(layer, QConv2d) else 1
    weight = grouped(layer, layer.weight).double()
    width = weight.shape[2]
    share = -(-max(samples, 16 * width) // len(visit.inputs))
    xx = weight.new_zeros(groups, width, width)
    xy = weight.new_zeros(groups, width, weight.shape[1])
    sum_x, sum_y, count = weight.new_zeros(groups, width), weight.new_zeros(groups, weight.shape[1]), 0
    for x, y in zip(visit.inputs, visit.targets(), strict=True):
        rows, target = _draw(layer, x, y, share, groups, generator)
        sum_x += rows.sum(1, dtype=torch.float64)
        sum_y += target.sum(1, dtype=torch.float64)
        xx += (rows.transpose(1, 2) @ rows).double()
        xy += (rows.transpose(1, 2) @ target).double()
        count += rows.shape[1]
    mean_x, mean_y = sum_x / count, sum_y / count
    hessian = xx / count - mean_x[:, :, None] * mean_x[:, None, :]
    moment = xy / count - mean_x[:, :, None] * mean_y[:, None, :]
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    ridge = (damping * diagonal.mean(1, keepdim=True)).clamp(min=1e-12)
    hessian.diagonal(dim1=1, dim2=2).add_(ridge)
    moment += ridge[:, :, None] * weight.transpose(1, 2)
    best = torch.cholesky_solve(moment, torch.linalg.cholesky(hessian)).transpose(1, 2)
    return Quadratic(hessian.float(), best.contiguous().float(), mean_x.float(), mean_y.float())


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
    """Give every channel the scale, of ``candidates`` shrunken ones, under which rounding to nearest costs least."""
    quantizer = layer.weight_quantizer
    if candidates == 0 or quantizer.fmt.scale != "float" or quantizer.axis is None:
        return
    full = form.best.abs().amax(-1, keepdim=True) / quantizer.qmax if quantizer.fmt.symmetric else None
    start = per_output(layer, quantizer.scale) if full is None else full.clamp(min=1e-12)
    zero = per_output(layer, quantizer.zero_point)
    least, kept = torch.full_like(start[..., 0], float("inf")), start
    for i in range(candidates):
        scale = start * (1.0 - 0.7 * i / candidates)
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
