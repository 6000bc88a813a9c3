"""Train the float network on labelled images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from zoo.context import Context
from zoo.errors import DataError, QuantError
from zoo.graph.fold import clone
from zoo.steps._learn import cosine


@dataclass(frozen=True)
class Train:
    """Cross-entropy on the training split: SGD with Nesterov momentum and a cosine schedule with warm-up.

    ``lr`` is the peak for a batch of 128 and scales with ``batch``. Weight decay spares biases and BatchNorm.
    ``augment`` crops at random and flips. ``bf16`` computes convolutions in bfloat16 under autocast.
    """

    epochs: int = 60
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    label_smoothing: float = 0.0
    augment: bool = True
    bf16: bool = True

    def __post_init__(self) -> None:
        """Refuse settings under which nothing is learned."""
        if self.epochs < 1 or self.batch < 1 or self.lr <= 0:
            raise ValueError("epochs, batch and lr must be positive")
        if not 0 <= self.label_smoothing < 1 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
            raise ValueError("label_smoothing and momentum must be in [0, 1), weight_decay not negative")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the trained graph in eval mode.

        Raises DataError for images without labels, QuantError for a loss that is not finite.
        """
        labels = ctx.calibration.labels
        if labels is None:
            raise DataError("train: the images have no labels; train needs a data set, not a loader of images")
        net = clone(net).train()
        parameters = list(net.parameters())
        for p in parameters:
            p.requires_grad_(True)
        decayed, spared = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
        rate = self.lr * self.batch / 128
        optimizer = torch.optim.SGD(
            [{"params": decayed, "weight_decay": self.weight_decay}, {"params": spared, "weight_decay": 0.0}],
            lr=rate, momentum=self.momentum, nesterov=self.momentum > 0,
        )  # fmt: skip
        count = len(ctx.calibration)
        per_epoch = max(1, count // self.batch)
        total = per_epoch * self.epochs
        generator = ctx.generator()
        losses: list[float] = []
        for step in ctx.progress(range(total), "train", total):
            if step % per_epoch == 0:
                order = torch.randperm(count, generator=generator)
            rows = order[(step % per_epoch) * self.batch :][: self.batch]
            x = ctx.calibration.augmented(rows, generator) if self.augment else ctx.calibration.at(rows)
            loss = self._loss(net, x, labels[rows])
            if not bool(torch.isfinite(loss)):
                raise QuantError(f"train: the loss is not finite at step {step}; lower lr")
            for group in optimizer.param_groups:
                group["lr"] = rate * cosine(step, total, warm=0.05)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
        for p in parameters:
            p.requires_grad_(False)
        tail = losses[-per_epoch:]
        ctx.log["train"] = {"steps": total, "loss_first": losses[0], "loss_last_epoch": sum(tail) / len(tail)}
        return net.eval()

    def _loss(self, net: fx.GraphModule, x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits: Tensor = net(x).float()
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
