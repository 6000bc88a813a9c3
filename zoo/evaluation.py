"""Top-1 of a network on a split."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from zoo.preprocess import Preprocess
from zoo.progress import bar

if TYPE_CHECKING:
    import numpy as np

    from zoo.data import Split


@dataclass(frozen=True)
class Scores:
    """``choice`` int64 ``[N]``: the class chosen for each image; ``correct`` bool ``[N]``; ``top1`` in percent.

    ``logits_sha256`` is over the little-endian float32 logits ``[N, classes]``: equal for an integer network wherever
    it runs.
    """

    choice: np.ndarray[Any, Any]
    correct: np.ndarray[Any, Any]
    logits_sha256: str = ""

    @property
    def top1(self) -> float:
        """Return the share of correct images in percent."""
        return 100.0 * float(self.correct.mean())


@contextlib.contextmanager
def modes_kept(*nets: nn.Module) -> Iterator[None]:
    """Give each module of the networks its training mode back afterwards, whatever happens."""
    modes = {module: module.training for net in nets for module in net.modules()}
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def predict(net: nn.Module, split: Split, preprocess: Preprocess, label: str, batch: int = 0) -> Scores:
    """Return the network's choices on every image of the split, in order.

    ``batch`` 0 chooses 250 for small images and 25 for large ones; the logits of a network on integers do not
    depend on it.
    """
    net.eval()
    size = batch or (250 if preprocess.size[0] <= 64 else 25)
    chosen, digest = [], hashlib.sha256()
    for start in bar(range(0, len(split), size), label, -(-len(split) // size)):
        logits = net(preprocess.batch(split.images[start : start + size]))
        digest.update(logits.float().contiguous().numpy().astype("<f4").tobytes())
        chosen.append(logits.argmax(1))
    choice = torch.cat(chosen).numpy()
    return Scores(choice, choice == split.labels[: len(choice)], digest.hexdigest())
