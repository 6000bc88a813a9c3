"""Behind ``zoo.compare``."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import DataError, GraphError
from zoo.evaluation import Scores, modes_kept
from zoo.loaders import batches
from zoo.progress import bar
from zoo.results import paired_interval

_WHOLE = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class Comparison:
    """What two networks make of the same labelled images; printing it gives a sentence.

    ``float_top1`` and ``top1`` are in percent, ``drop`` and its 95 % interval ``drop_interval``
    (``zoo.results.paired_interval``) in points, ``agreement`` is the share of images in percent for which both choose
    the same class.
    """

    images: int
    float_top1: float
    top1: float
    drop: float
    drop_interval: tuple[float, float]
    agreement: float

    def __str__(self) -> str:
        """Return it as a sentence."""
        low, high = self.drop_interval
        return (
            f"float {self.float_top1:.2f} %, quantized {self.top1:.2f} %: a drop of {self.drop:.2f} points, "
            f"95 % interval [{low:.2f}, {high:.2f}], on {self.images:,} images; both choose the same class for "
            f"{self.agreement:.2f} %"
        )


@torch.no_grad()
def compare_networks(reference: nn.Module, quantized: nn.Module, loader: Iterable[Any]) -> Comparison:
    """Measure both networks on the same images; see ``zoo.compare``."""
    nets = (reference, quantized)
    if other := next((type(net).__name__ for net in nets if not isinstance(net, nn.Module)), None):
        raise GraphError(f"zoo.compare: a network must be a torch.nn.Module, got {other}")
    chosen: list[list[Tensor]] = [[], []]
    wanted: list[Tensor] = []
    with modes_kept(*nets):
        for net in nets:
            net.eval()
        total = len(loader) if isinstance(loader, Sized) else None
        for i, (images, labels) in enumerate(bar(batches(loader, "test images"), "compare", total)):
            logits = [net(images) for net in nets]
            wanted.append(_labels(labels, images, logits, i))
            for choices, found in zip(chosen, logits, strict=True):
                choices.append(found.argmax(1))
    labels_of_all = torch.cat(wanted)
    if not len(labels_of_all):
        raise DataError("test images: every batch is empty; give at least one image")
    before, after = (Scores(choice.numpy(), (choice == labels_of_all).numpy()) for choice in map(torch.cat, chosen))
    drop, low, high = paired_interval(before.correct, after.correct)
    agreement = 100.0 * float((before.choice == after.choice).mean())
    return Comparison(len(labels_of_all), before.top1, after.top1, drop, (low, high), agreement)


def _labels(labels: Any, images: Tensor, logits: list[Tensor], number: int) -> Tensor:
    shapes = [list(found.shape) for found in logits]
    if shapes[0] != shapes[1] or len(shapes[0]) != 2:
        raise DataError(f"compare: the networks give {shapes[0]} and {shapes[1]}; both must give [N, classes] alike")
    if not isinstance(labels, Tensor) or labels.dtype not in _WHOLE:
        raise DataError(f"test images: batch {number} must be images with labels, a tensor of whole numbers [N]")
    if list(labels.shape) != [len(images)]:
        raise DataError(
            f"test images: batch {number} has labels {list(labels.shape)} for {len(images)} images; give one for each"
        )
    classes = shapes[0][1]
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"test images: batch {number} has labels {int(labels.min())} to {int(labels.max())}, the networks know "
            f"classes 0 to {classes - 1}"
        )
    return labels.cpu().long()
