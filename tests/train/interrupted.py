"""A small training, and for test_resume one that kills itself: ``interrupted.py WORK STEP``."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn

from tests.networks import config, images
from zoo.context import Context, Images
from zoo.graph.trace import trace
from zoo.recipe import Step, make_step
from zoo.train import loop

SETTINGS = {
    "epochs": 3, "batch": 16, "lr": 0.02, "ema": 0.9, "quantizer": "tqt", "distill": 0.5, "cutout": 3, "holdout": 16,
    "dampen": {"start": 0.0}, "freeze": {"start": 0.1, "low": 0.002, "high": 0.002}, "patience": 99,
}  # fmt: skip


class Sum(nn.Module):
    """``x + conv(x)``: of both signs, so its format has a zero point."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv(x)


def context(count: int = 64, residual: bool = False) -> Context:
    """Return a small float network and labelled images of 8x8."""
    pictures = images(count, 8)
    torch.manual_seed(1)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)]
    last = [Sum()] if residual else []
    model = nn.Sequential(*layers, nn.ReLU(), *last, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    labels = (pictures[:, 0].mean((1, 2)) > 0).long()
    return Context(config(3, 4), Images(pictures, labels=labels), trace(model.eval(), pictures[:1]))


def train(
    work: Path | None, settings: dict[str, object], count: int = 64, quantized: bool = True, residual: bool = False
) -> tuple[dict[str, torch.Tensor], Context]:
    """Quantize, or not, and train; return the state of the trained graph and the context."""
    torch.set_num_threads(1)
    ctx = context(count, residual)
    ctx.work = work
    net = ctx.parent
    steps = [("quantize", {"batchnorm": "merge"}), ("calibrate", {"images": 16}), ("train", settings)]
    for ctx.position, (name, fields) in enumerate(steps if quantized else steps[2:]):
        net = make_step(Step(name, dict(fields)), "test")(net, ctx)
    return {n: t.contiguous() for n, t in net.state_dict().items()}, ctx


def main(work: Path, step: int) -> None:
    """Train with a snapshot of every step; die before this step's is written."""
    loop.SAVE_SECONDS = 0.0
    save = loop.Loop.save

    def fatal(self: loop.Loop) -> None:
        if self.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        save(self)

    loop.Loop.save = fatal  # type: ignore[method-assign]
    train(work, SETTINGS)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
