"""Set every scale and zero point: weights from their values, activations from calibration images."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import ClassVar, Protocol

import torch
from torch import Tensor, fx, nn

from zoo.context import Context
from zoo.errors import DataError, QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QNode, QWeighted
from zoo.quant.quantizer import Quantizer
from zoo.resolve import class_name, load, names

MINIMUM = 16


class Observer(Protocol):
    """What every file of ``zoo/quant/observers`` offers."""

    def range(self, sample: Tensor, low: Tensor, high: Tensor, quantizer: Quantizer) -> tuple[Tensor, Tensor]:
        """Return the range to represent, ``[C]`` each."""
        ...


@dataclass(frozen=True)
class Calibrate:
    """Estimate ranges with the float graph.

    ``weight`` and ``act`` name files of ``zoo/quant/observers``. ``images`` None takes up to 512.
    ``samples`` values of each tensor are kept for the estimators, drawn evenly over the images; the extremes are exact.
    ``percentile`` and ``p`` are those of the observers percentile and mse; a new observer's setting is a field here.
    """

    takes: ClassVar = ("quantized", "calibrated")
    gives: ClassVar = "calibrated"

    weight: str = "mse"
    act: str = "mse"
    images: int | None = None
    batch: int = 32
    samples: int = 65536
    percentile: float = 99.99
    p: float = 2.4

    def __post_init__(self) -> None:
        """Refuse empty batches."""
        if self.batch < 1 or self.samples < 256 or (self.images is not None and self.images < 1):
            raise ValueError("batch and images must be positive and samples at least 256")
        known = names("zoo.quant.observers")
        for field, name in (("weight", self.weight), ("act", self.act)):
            if name not in known:
                raise ValueError(f"{field}: observer {name!r} is unknown (known: {', '.join(known)})")
        for name in known:  # a setting that its observer refuses is wrong, whether or not that one is in use
            self.observer(name)

    def observer(self, name: str) -> Observer:
        """Return the named estimator with those of this step's settings that it takes."""
        kind = getattr(load("zoo.quant.observers", name, "calibrate"), class_name(name))
        observer: Observer = kind(**{f.name: getattr(self, f.name) for f in fields(kind) if hasattr(self, f.name)})
        return observer

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the calibrated Q-graph.

        Raises DataError for too few images, QuantError (naming the layer) for NaN or infinite activations.
        """
        available = len(ctx.calibration)
        wanted = self.images if self.images is not None else min(512, available)
        if available < max(wanted, MINIMUM):
            lower = f" or lower steps.{ctx.position}.calibrate.images" if available >= MINIMUM else ""
            raise DataError(
                f"calibrate: {available} calibration images, {max(wanted, MINIMUM)} needed; give more images{lower}"
            )
        net = clone(net)
        nodes = {name: m for name, m in net.named_modules() if isinstance(m, QNode)}
        if not nodes:
            raise QuantError("calibrate: the graph holds no quantizer; put the step quantize before it")
        for name, node in nodes.items():
            if isinstance(node, QWeighted):
                calibrate_weight(node, self.observer(self.weight), name)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            self._activations(net, nodes, ctx, wanted)
        return net

    def _activations(self, net: fx.GraphModule, nodes: dict[str, QNode], ctx: Context, wanted: int) -> None:
        share = max(256, self.samples * self.batch // wanted)
        seen = {name: _Seen(share) for name in nodes}
        weights = [m.weight_quantizer for m in nodes.values() if isinstance(m, QWeighted)]
        for quantizer in [n.out for n in nodes.values()] + weights:
            quantizer.active = False
        hooks = [node.out.register_forward_pre_hook(seen[name]) for name, node in nodes.items()]
        try:
            count = -(-wanted // self.batch)
            for batch in ctx.progress(ctx.calibration.batches(self.batch, wanted), "calibrate", count):
                net(batch)
        finally:
            for hook in hooks:
                hook.remove()
        observer = self.observer(self.act)
        for name, node in nodes.items():
            low, high = seen[name].extremes(name)
            node.out.active = True
            low, high = observer.range(seen[name].sample(), low, high, node.out)
            node.out.set_range(low, high if node.cap is None else high.clamp(max=float(node.cap.min())))
        for quantizer in weights:
            quantizer.active = True


class _Seen:
    """Collects exact extremes and a random sample of what reaches one quantizer."""

    def __init__(self, share: int) -> None:
        self.share = share
        self.low, self.high = float("inf"), float("-inf")
        self.parts: list[Tensor] = []

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        (x,) = args
        flat = x.permute(0, 2, 3, 1).reshape(-1) if x.dim() == 4 else x.reshape(-1)
        # of the row: over a channels_last tensor it is many times as slow
        low, high = map(float, torch.aminmax(flat))
        # of a NaN anywhere aminmax makes NaN, which no later comparison replaces
        self.low = low if math.isnan(low) or low < self.low else self.low
        self.high = high if math.isnan(high) or high > self.high else self.high
        picked = torch.randint(flat.numel(), (self.share,)) if flat.numel() > self.share else slice(None)
        self.parts.append(flat[picked].clone())

    def extremes(self, name: str) -> tuple[Tensor, Tensor]:
        if not (torch.isfinite(torch.tensor(self.low)) and torch.isfinite(torch.tensor(self.high))):
            raise QuantError(
                f"{name}: its output holds NaN or infinity on the calibration images; check the weights and the "
                "preprocessing"
            )
        return torch.tensor([self.low]), torch.tensor([self.high])

    def sample(self) -> Tensor:
        return torch.cat(self.parts)[None]


@torch.no_grad()
def calibrate_weight(layer: QWeighted, observer: Observer, name: str) -> None:
    """Set the weight quantizer's scales; a dead (all-zero) channel gets a scale of its own rather than zero."""
    sign = layer.sign()
    weight = layer.latent() if sign is None else layer.latent() * sign.reshape([-1] + [1] * (layer.weight.dim() - 1))
    if not bool(torch.isfinite(weight).all() and torch.isfinite(layer.bias).all()):
        raise QuantError(f"{name}: the float weights hold NaN or infinity")
    rows = weight.flatten(1) if layer.weight_quantizer.axis == 0 else weight.reshape(1, -1)
    low, high = rows.amin(1), rows.amax(1)
    layer.weight_quantizer.set_range(*observer.range(rows, low, high, layer.weight_quantizer))
