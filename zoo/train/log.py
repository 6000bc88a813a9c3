"""What a training reports while it runs: an epoch's row, its CSV, and scalars for TensorBoard where asked for."""

from __future__ import annotations

import csv
import io
import math
import os
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from zoo import ranks
from zoo.errors import DataError, QuantError

COLUMNS = ("position", "epoch", "step", "lr", "loss", "accuracy", "holdout", "images_per_second")


@dataclass
class Epoch:
    """Sums over the steps of an epoch, those of an interrupted run included."""

    loss: float = 0.0
    right: int = 0
    seen: int = 0
    steps: int = 0
    seconds: float = 0.0

    def add(self, loss: float, right: int, count: int) -> None:
        """Count one step's mean loss and its correct images."""
        self.loss += loss
        self.right += right
        self.seen += count
        self.steps += 1

    def line(self) -> str:
        """Return the epoch so far for a progress bar."""
        return f"loss {self.loss / max(1, self.steps):.3f}, {100 * self.right / max(1, self.seen):.1f} %"


@dataclass
class Log:
    """The epochs so far, as rows of a CSV; refuses a training that learns nothing.

    ``patience`` epochs in a row at chance end it: less than 1.5 times 1 / classes of the training images right, with
    few classes less than 1 / classes and 5 %. Of one class there is nothing to tell.
    """

    position: int
    classes: int
    patience: int
    rows: list[dict[str, Any]] = field(default_factory=list)

    def finite(self, loss: float, step: int) -> None:
        """Raise QuantError unless the loss is finite."""
        if not math.isfinite(loss):
            raise QuantError(
                f"train: the loss is not finite at step {step}; lower lr, or lr_scale where ranges are learned"
            )

    def close(self, epoch: Epoch, *, step: int, lr: float, holdout: float | None) -> None:
        """Add an epoch; QuantError when the last ``patience`` ones were at chance."""
        self.rows.append({
            "position": self.position, "epoch": len(self.rows) + 1, "step": step, "lr": lr,
            "loss": epoch.loss / epoch.steps, "accuracy": 100.0 * epoch.right / epoch.seen, "holdout": holdout,
            "images_per_second": round(epoch.seen / max(epoch.seconds, 1e-9), 1),
        })  # fmt: skip
        _tensorboard(self.rows[-1])
        last = self.rows[-self.patience :]
        chance = 100.0 / self.classes + min(50.0 / self.classes, 5.0)
        if self.classes > 1 and len(last) == self.patience and all(row["accuracy"] < chance for row in last):
            raise QuantError(
                f"train: {self.patience} epochs at chance level ({last[-1]['accuracy']:.1f} % of {self.classes} "
                "classes); lower lr, or lr_scale where ranges are learned, or start from more bits"
            )


def csv_text(rows: list[dict[str, Any]]) -> str:
    """Return rows as CSV; an empty cell is a value that was not measured."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
    return out.getvalue()


@torch.no_grad()
def right(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many images ``[N, K]`` are classified right, as an integer tensor."""
    return (logits.argmax(1) == labels).sum()


def tensorboard() -> Any:
    """Return what opens a writer into the folder ``ZOO_TENSORBOARD``, None where none is named.

    DataError where the package is missing.
    """
    folder = os.environ.get("ZOO_TENSORBOARD")
    if not folder:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise DataError("ZOO_TENSORBOARD is set, but tensorboard is not installed; install lowbit-zoo[tensorboard] "
                        "or unset it") from None  # fmt: skip
    return partial(SummaryWriter, folder)


def _tensorboard(row: dict[str, Any]) -> None:
    opened = tensorboard() if ranks.leader() else None
    if opened is None:
        return
    with opened() as writer:
        for key in ("lr", "loss", "accuracy", "holdout"):
            if row[key] is not None:
                writer.add_scalar(f"{row['position']}/{key}", row[key], row["epoch"])
