"""Steps of a training, from the first or from a snapshot to the last."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from zoo import ranks
from zoo.quant.quantizer import RangeLearner
from zoo.train import log as report
from zoo.train import optimizer as optimizers
from zoo.train.checkpoint import Snapshots
from zoo.train.dampen import Dampen
from zoo.train.data import Data
from zoo.train.ema import Average
from zoo.train.freeze import Frozen
from zoo.train.log import Epoch, Log
from zoo.train.objective import Objective, opinion
from zoo.train.oscillate import Oscillations
from zoo.train.sparsify import Sparsify

SAVE_SECONDS = 60.0


@dataclass
class Loop:
    """A training: what it changes, what it learns from, and what it leaves for a later start.

    ``rate`` gives the factor of all peak rates at a step. ``forward`` is the network, perhaps compiled. Everything
    random comes from ``generator``, so a snapshot of it and of the order of images makes a resumed run equal to an
    uninterrupted one to the bit, on the CPU.
    """

    net: fx.GraphModule
    forward: Callable[[Tensor], Tensor]
    data: Data
    optimizer: torch.optim.Optimizer
    objective: Objective
    rate: Callable[[int], float]
    generator: torch.Generator
    log: Log
    batch: int
    epochs: int
    bf16: bool
    learners: list[RangeLearner] = field(default_factory=list)
    teacher: fx.GraphModule | None = None
    average: Average | None = None
    dampen: Dampen | None = None
    tracked: Frozen | Oscillations | None = None
    sparsify: Sparsify | None = None
    snapshots: Snapshots | None = None

    def __post_init__(self) -> None:
        """Start at the first step."""
        self.peaks = [float(g["lr"]) for g in self.optimizer.param_groups]
        self.step, self.epoch = 0, Epoch()
        self.first_loss = 0.0
        self.earlier, self.started = 0.0, time.monotonic()  # seconds of interrupted runs; when this one began
        self.order = torch.empty(0, dtype=torch.int64)
        self.per_epoch = max(1, len(self.data) // self.batch)
        self.total = self.per_epoch * self.epochs

    def run(self, progress: Callable[[Iterable[Any], str, int | None], Iterable[Any]]) -> None:
        """Train to the last step; raises QuantError for a training that diverges or learns nothing."""
        if self.snapshots is not None:
            found = self.snapshots.latest()
            if found is not None:
                self._restore(*found)
            ranks.require_same(self.step, "train: the processes would go on from different steps; give them one folder "
                               "of results, the same for all")  # fmt: skip
        saved = before = time.monotonic()
        steps = progress(range(self.step, self.total), "train", self.total - self.step)
        show = getattr(steps, "set_postfix_str", None)
        for step in steps:
            if step % self.per_epoch == 0:
                self.order = torch.randperm(len(self.data), generator=self.generator)
                self.epoch, before = Epoch(), time.monotonic()
            self._advance(step)
            self.step = step + 1
            now = time.monotonic()
            self.epoch.seconds += now - before
            if show is not None and (step % 10 == 0):
                show(f"{self.epoch.line()}, {self.batch / max(1e-9, now - before):.0f} im/s")
            before = now
            if self.step % self.per_epoch == 0:
                self._close()
            if (
                self.snapshots is not None
                and ranks.leader()
                and (now - saved >= SAVE_SECONDS or self.step == self.total)
            ):
                self.save()
                saved = time.monotonic()

    def _advance(self, step: int) -> None:
        rows = self.order[(step % self.per_epoch) * self.batch :][: self.batch]
        x, labels = self.data.batch(rows, self.generator, step // self.per_epoch)
        if self.sparsify is not None:
            self.sparsify.update(self.net, step, self.total)
        target = None if self.teacher is None else opinion(self.teacher, x, self.bf16)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.forward(x).float()
        loss = self.objective(logits, labels, target)
        seen = torch.stack([loss.detach(), report.right(logits, labels).to(loss.dtype)])
        value, right = ranks.mean(seen).tolist()
        self.log.finite(value, step)
        penalty = None if self.dampen is None else self.dampen.penalty(self.net, step, self.total)
        for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
            group["lr"] = peak * self.rate(step)
        self.optimizer.zero_grad()
        (loss if penalty is None else loss + penalty).backward()  # type: ignore[no-untyped-call]
        if self.sparsify is not None:
            self.sparsify.pull(self.net)
        self.optimizer.step()
        for learner in self.learners:
            learner.limit()
        if self.tracked is not None:
            self.tracked.update(step, self.total)
        if self.average is not None:
            self.average.update(self.net)
        self.first_loss = value if step == 0 else self.first_loss
        self.epoch.add(value, round(right * ranks.count()), len(rows))

    def take_average(self) -> None:
        """Give the network its average, where there is one; frozen weights stay on their integers."""
        if self.average is not None:
            self.average.write(self.net)
            if isinstance(self.tracked, Frozen):
                self.tracked.hold()

    def _close(self) -> None:
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.log.close(self.epoch, step=self.step, lr=lr, holdout=self._held_out())

    @torch.no_grad()
    def _held_out(self) -> float | None:
        """Return the accuracy in percent on the images held out, of the average where there is one."""
        if not len(self.data.held):
            return None
        kept = {n: t.clone() for n, t in self.net.state_dict().items()}
        self.take_average()
        self.net.eval()
        right = 0
        for x, labels in self.data.held_out():
            with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
                right += int(report.right(self.net(x), labels))
        self.net.load_state_dict(kept)
        self.net.train()
        return 100.0 * right / len(self.data.held)

    def save(self) -> None:
        """Write a snapshot of this moment."""
        assert self.snapshots is not None
        tensors = {f"net.{n}": t for n, t in self.net.state_dict().items()}
        tensors |= {f"optimizer.{n}": t for n, t in optimizers.tensors(self.optimizer).items()}
        if self.average is not None:
            tensors |= {f"average.{n}": t for n, t in self.average.values.items()}
        if self.tracked is not None:
            tensors |= {f"tracked.{n}": t for n, t in self.tracked.state.items()}
        tensors |= {
            "order": self.order, "generator": self.generator.get_state(), "torch": torch.random.get_rng_state(),
        }  # fmt: skip
        facts = {
            "epoch": vars(self.epoch), "rows": self.log.rows, "first_loss": self.first_loss,
            "averaged": self.average.steps if self.average is not None else 0,
            "seconds": self.earlier + time.monotonic() - self.started,
        }  # fmt: skip
        self.snapshots.save(self.step, tensors, facts)

    @torch.no_grad()
    def _restore(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        def part(name: str) -> dict[str, Tensor]:
            return {key[len(name) + 1 :]: t for key, t in tensors.items() if key.startswith(f"{name}.")}

        for name, mask in part("net").items():
            owner, _, leaf = name.rpartition(".")
            if leaf == "mask":
                self.net.get_submodule(owner).mask = mask.to(self.data.labels.device)
        self.net.load_state_dict(part("net"))
        optimizers.restore(self.optimizer, part("optimizer").items())
        if self.average is not None:
            self.average.restore(part("average"), facts["averaged"])
        if self.tracked is not None:
            for name, value in part("tracked").items():
                self.tracked.state[name].copy_(value)
        self.order = tensors["order"]
        self.generator.set_state(tensors["generator"])
        torch.random.set_rng_state(tensors["torch"])
        self.step, self.epoch, self.log.rows = facts["step"], Epoch(**facts["epoch"]), facts["rows"]
        self.first_loss, self.earlier = facts["first_loss"], facts.get("seconds", 0.0)
        if self.snapshots is not None:
            self.snapshots.go_on(facts)
