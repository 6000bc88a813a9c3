"""Tune weights and scales end to end towards the float network's outputs, without a label."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from zoo.context import Context
from zoo.errors import QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QNode
from zoo.steps._blocks import blocks
from zoo.steps._learn import units_of
from zoo.steps._walk import require_calibrated
from zoo.train.schedule import cosine


@dataclass(frozen=True)
class Distill:
    """Self-distillation on the unlabelled calibration images (Hinton et al. 2015; LSQ gradients of all scales).

    ``epochs`` over the calibration images: None takes the budget's (fast 6, full 60). ``lr_weight`` is the largest
    step in quantization steps of the weight, ``lr_bias`` in output steps, ``lr_scale`` relative to the scale.
    ``augment`` crops at random and flips. The loss is KL(float || network) at temperature 1, times ``kl``, plus
    ``mse`` times the mean squared difference of the logits over their variance, plus ``features`` times the same for
    the block outputs (mean over blocks; see the step reconstruct): few images say much more that way.

    The float network is the one that ``quantize`` was given: what ``replace_relu6``, ``equalize`` or ``absorb_bias``
    changed before is changed there too, as are channels that ``equalize_activations`` rescales.
    """

    takes: ClassVar = ("calibrated",)

    epochs: float | None = None
    batch: int = 32
    lr_weight: float = 0.01
    lr_scale: float = 0.0005
    lr_bias: float = 0.003
    kl: float = 1.0
    mse: float = 0.0
    features: float = 0.0
    layers: int = 3
    augment: bool = True
    bf16: bool = False

    def __post_init__(self) -> None:
        """Refuse settings under which nothing is learned."""
        if self.batch < 1 or (self.epochs is not None and self.epochs <= 0):
            raise ValueError("batch and epochs must be positive")
        if min(self.lr_weight, self.lr_scale, self.lr_bias, self.kl, self.mse, self.features) < 0:
            raise ValueError("rates and loss weights must not be negative")
        if self.kl + self.mse + self.features == 0 or self.layers < 1:
            raise ValueError("one of kl, mse and features must be positive, and layers too")
        if self.lr_weight + self.lr_scale + self.lr_bias == 0:
            raise ValueError("one of lr_weight, lr_scale and lr_bias must be positive")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the tuned Q-graph; raises QuantError if the loss stops being finite."""
        require_calibrated(net, "distill")
        if self.features and ctx.log.get("reuse_channels"):
            raise QuantError("distill.features: after reuse_channels some channels stand for others than the float "
                             "network's; leave features out")  # fmt: skip
        net = clone(net)
        nodes = [m for m in net.modules() if isinstance(m, QNode)]
        teacher = ctx.parent if ctx.reference is None else ctx.reference
        pair = _Pair(net, teacher, self.layers if self.features else 0)
        if self.features and not pair.hooks:
            raise QuantError("distill.features: the network is a single block; lower layers, or leave features out")
        units = units_of(nodes, lr_weight=self.lr_weight, lr_scale=self.lr_scale, lr_bias=self.lr_bias)
        if not units.groups:
            raise QuantError("distill: the only rate is that of the scales, which are powers of two and stay; raise "
                             "lr_weight or lr_bias")  # fmt: skip
        optimizer = units.optimizer()
        peaks = [float(g["lr"]) for g in optimizer.param_groups]
        count = len(ctx.calibration)
        per_epoch = max(1, count // self.batch)
        budget = self.epochs if self.epochs is not None else (60.0 if ctx.budget == "full" else 6.0)
        total = max(1, round(per_epoch * budget))
        generator = ctx.generator()
        losses: list[float] = []
        for step in ctx.progress(range(total), "distill", total):
            if step % per_epoch == 0:
                order = torch.randperm(count, generator=generator)
            rows = order[(step % per_epoch) * self.batch :][: self.batch]
            draws = torch.rand(len(rows), 3, generator=generator) if self.augment else None
            x = ctx.calibration.at(rows) if draws is None else ctx.calibration.augmented(rows, draws)
            loss = self._loss(pair, x)
            if not bool(torch.isfinite(loss)):
                raise QuantError(f"distill: the loss is not finite at step {step}; lower lr_weight and lr_scale")
            loss.backward()  # type: ignore[no-untyped-call]
            units.gather()
            for group, peak in zip(optimizer.param_groups, peaks, strict=True):
                group["lr"] = peak * cosine(step, total)
            optimizer.step()
            units.scatter()
            losses.append(float(loss.detach()))
        units.finish()
        pair.close()
        tail = losses[-per_epoch:]
        ctx.log["distill"] = {"steps": total, "loss_first": losses[0], "loss_last_epoch": sum(tail) / len(tail)}
        return net

    def _loss(self, pair: _Pair, x: Tensor) -> Tensor:
        logits, target = pair(x, self.bf16)
        loss: Tensor = logits.new_zeros(())
        if self.kl:
            loss = loss + self.kl * F.kl_div(
                F.log_softmax(logits, 1), F.log_softmax(target, 1), reduction="batchmean", log_target=True
            )
        if self.mse:
            loss = loss + self.mse * F.mse_loss(logits, target) / target.var()
        if self.features:
            parts = [F.mse_loss(ours, theirs) / theirs.var().clamp(min=1e-12) for ours, theirs in pair.features()]
            loss = loss + self.features * torch.stack(parts).mean()
        return loss


class _Pair:
    """Runs the network and its teacher, and keeps what both gave at the ends of the blocks."""

    def __init__(self, net: fx.GraphModule, teacher: fx.GraphModule, layers: int) -> None:
        self.net, self.teacher = net, teacher
        ends = [str(b.nodes[-1].target) for b in blocks(net, layers)[:-1]] if layers else []
        self.seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        self.hooks = [
            graph.get_submodule(name).register_forward_hook(partial(_keep, seen, name))
            for graph, seen in zip((net, teacher), self.seen, strict=True)
            for name in ends
        ]

    def __call__(self, x: Tensor, bf16: bool) -> tuple[Tensor, Tensor]:
        """Return the logits of both in float32."""
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            target: Tensor = self.teacher(x).float()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits: Tensor = self.net(x).float()
        return logits, target

    def features(self) -> list[tuple[Tensor, Tensor]]:
        """Return the block outputs of both in float32."""
        ours, theirs = self.seen
        return [(ours[name].float(), theirs[name].float()) for name in ours]

    def close(self) -> None:
        """Take the hooks out again."""
        for hook in self.hooks:
            hook.remove()


def _keep(seen: dict[str, Tensor], name: str, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
    seen[name] = output
