"""Block-wise reconstruction: a block's rounding, or its weights, and its activation scales are learned together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.errors import QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QNode, QWeighted
from zoo.quant.rounding import LearnedRounding, beta, rounding_loss
from zoo.steps._blocks import Block, blocks
from zoo.steps._learn import units_of
from zoo.steps._walk import float_twin, require_calibrated, require_zero_level
from zoo.train.schedule import cosine


@dataclass(frozen=True)
class Reconstruct:
    """Make each block's output equal to the float block's (BRECQ, Li et al. 2021; QDrop, Wei et al. 2022).

    Blocks are residual blocks; a plain chain is cut every ``layers`` layers. Each sees the outputs of the quantized
    blocks before it. ``weights`` = ``rounding`` learns up or down for each weight (BRECQ), ``latent`` moves the weights
    themselves, straight through the rounding. ``drop`` is QDrop's probability that an activation stays unquantized
    (0: BRECQ). ``iterations`` per block: None takes the budget's (fast 200, full 20,000), each on ``batch`` of the
    ``images``. ``rate`` is Adam's for the rounding, the ``lr_`` fields are those of the step distill.
    """

    takes: ClassVar = ("calibrated",)

    weights: Literal["rounding", "latent"] = "rounding"
    iterations: int | None = None
    images: int = 512
    batch: int = 32
    drop: float = 0.5
    layers: int = 3
    rate: float = 0.003
    weight: float = 0.01
    lr_weight: float = 0.01
    lr_scale: float = 0.002
    lr_bias: float = 0.01

    def __post_init__(self) -> None:
        """Refuse settings under which nothing is learned."""
        if min(self.images, self.batch, self.layers) < 1 or (self.iterations is not None and self.iterations < 1):
            raise ValueError("images, batch, layers and iterations must be positive")
        if not 0 <= self.drop < 1:
            raise ValueError(f"drop must be in [0, 1), got {self.drop}")
        if min(self.rate, self.weight, self.lr_weight, self.lr_scale, self.lr_bias) < 0:
            raise ValueError("rates must not be negative")
        learned = self.rate if self.weights == "rounding" else self.lr_weight + self.lr_scale + self.lr_bias
        if learned == 0:
            raise ValueError("rate (weights: rounding) or one of the lr_ fields (weights: latent) must be positive")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the reconstructed Q-graph; QuantError for one that is not calibrated or a loss that is not finite."""
        require_calibrated(net, "reconstruct")
        if self.weights == "rounding":
            require_zero_level(net, "reconstruct")
        net = clone(net)
        twin = float_twin(net)
        quantized = [x for x in ctx.calibration.batches(self.batch, self.images)]
        exact = list(quantized)
        parts = blocks(net, self.layers)
        losses: dict[str, list[float]] = {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.seed)
            for block in ctx.progress(parts, "reconstruct", len(parts)):
                with torch.no_grad():
                    target = [block.run(twin, x) for x in exact]
                if any(isinstance(m, QWeighted) for m in block.modules(net)):
                    first, last = self._tune(net, block, quantized, exact, target, ctx)
                    losses[block.name] = [first, last]
                with torch.no_grad():
                    quantized = [block.run(net, x) for x in quantized]
                exact = target
        ctx.log["reconstruct"] = losses
        return net

    def _tune(
        self, net: fx.GraphModule, block: Block, quantized: list[Tensor], exact: list[Tensor], target: list[Tensor],
        ctx: Context,
    ) -> tuple[float, float]:  # fmt: skip
        nodes = [m for m in block.modules(net) if isinstance(m, QNode)]
        layers = [m for m in nodes if isinstance(m, QWeighted)]
        learned = self.weights == "rounding"
        units = units_of(
            nodes, lr_weight=0.0 if learned else self.lr_weight, lr_scale=self.lr_scale, lr_bias=self.lr_bias,
            weight_scales=not learned,
        )  # fmt: skip
        groups = list(units.groups)
        if learned:
            for layer in layers:
                layer.rounding = _rounding(layer)
            groups.append({"params": [m.logits for m in _roundings(layers)], "lr": self.rate})
        optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99))
        peaks = [float(g["lr"]) for g in optimizer.param_groups]
        total = ctx.iterations(200, 20_000, self.iterations)
        inputs, exact_inputs, wanted = torch.cat(quantized), torch.cat(exact), torch.cat(target)
        power = wanted.var().clamp(min=1e-12)
        losses = []
        for node in nodes:
            node.out.drop = self.drop
            node.train()
        for step in range(total):
            rows = torch.randint(len(inputs), (self.batch,))
            x = inputs[rows]
            if self.drop:
                x = torch.where(torch.rand_like(x) < self.drop, exact_inputs[rows], x)
            loss = (block.run(net, x) - wanted[rows]).square().mean() / power
            if not bool(torch.isfinite(loss)):
                raise QuantError(f"reconstruct: the loss of {block.name} is not finite; lower the rates")
            losses.append(float(loss.detach()))
            exponent = beta(step, total) if learned else None
            if exponent is not None:
                for rounding in _roundings(layers):
                    soft = rounding.soft()
                    loss = loss + self.weight * rounding_loss(soft, exponent) / soft.numel()
            loss.backward()  # type: ignore[no-untyped-call]
            units.gather()
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * cosine(step, total)
            optimizer.step()
            optimizer.zero_grad()
            units.scatter()
        units.finish()
        for node in nodes:
            node.out.drop = 0.0
            node.eval()
        for layer in layers if learned else []:
            _settle(layer)
        tenth = max(1, total // 10)
        return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


def _rounding(layer: QWeighted) -> LearnedRounding:
    quantizer = layer.weight_quantizer
    shape = [-1] + [1] * (layer.weight.dim() - 1)
    return LearnedRounding(
        layer.weight, quantizer.scale.reshape(shape), quantizer.zero_point.reshape(shape), quantizer.qmin,
        quantizer.qmax,
    )  # fmt: skip


def _roundings(layers: list[QWeighted]) -> list[LearnedRounding]:
    return [m.rounding for m in layers if isinstance(m.rounding, LearnedRounding)]


@torch.no_grad()
def _settle(layer: QWeighted) -> None:
    rounding = layer.rounding
    assert isinstance(rounding, LearnedRounding)
    layer.weight.copy_((rounding.codes() - rounding.zero_point) * rounding.scale)
    layer.rounding = None
