"""What a step may read: formats, calibration images, the float parent, a seeded generator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from zoo import augment, loaders
from zoo.errors import DataError
from zoo.preprocess import Preprocess
from zoo.quant.spec import QuantConfig

if TYPE_CHECKING:
    import numpy as np


class Images:
    """Images a step may draw batches from, with labels or without: uint8 with a preprocessing, or ready tensors."""

    def __init__(
        self, pixels: np.ndarray[Any, Any] | Tensor, preprocess: Preprocess | None = None, labels: Any = None
    ) -> None:
        """Take uint8 ``[N, S, S, C]`` (needs ``preprocess``) or float32 ``[N, C, H, W]``."""
        self.pixels, self.preprocess = pixels, preprocess
        self.labels = None if labels is None else torch.as_tensor(labels)
        if len(pixels) == 0:
            raise DataError("calibration: no images; give at least one batch")

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.pixels)

    @classmethod
    def from_loader(cls, loader: Iterable[Any]) -> Images:
        """Collect a user's loader of ``[N, C, H, W]`` float batches, alone or as the first of a tuple."""
        return cls(torch.cat([images for images, _ in loaders.batches(loader, "calibration")]))

    def at(self, rows: Tensor | slice) -> Tensor:
        """Return the preprocessed images of some rows, centre-cropped."""
        if self.preprocess is None:
            return self._picked(rows)
        return self.preprocess.batch(self._picked(rows))

    def digest(self) -> str:
        """Return the sha256 of pixels, labels and preprocessing."""
        digest = hashlib.sha256(b"" if self.preprocess is None else repr(self.preprocess.to_dict()).encode())
        for part in (self.pixels, self.labels):
            if part is not None:
                array = part.cpu().contiguous().numpy() if isinstance(part, Tensor) else part
                digest.update(f"{array.shape}{array.dtype}".encode())
                digest.update(array.tobytes())
        return digest.hexdigest()

    def on(self, device: torch.device) -> Images:
        """Return the same images in the memory of a device."""
        if device.type == "cpu":
            return self
        labels = None if self.labels is None else self.labels.to(device)
        return Images(torch.as_tensor(self.pixels).to(device), self.preprocess, labels)

    def _picked(self, rows: Tensor | slice) -> Tensor:
        if isinstance(self.pixels, Tensor):
            return self.pixels[rows if isinstance(rows, slice) else rows.to(self.pixels.device)]
        return torch.tensor(self.pixels[rows if isinstance(rows, slice) else rows.numpy()])

    def batches(self, size: int, limit: int | None = None, draws: torch.Generator | None = None) -> Iterator[Tensor]:
        """Yield the first ``limit`` images of a fixed shuffle: many data sets are stored class by class.

        With ``draws`` they are cropped and flipped by its numbers.
        """
        order = shuffled(len(self))[: limit or len(self)]
        for rows in torch.split(order, size):
            yield self.at(rows) if draws is None else self.augmented(rows, torch.rand(len(rows), 3, generator=draws))

    def augmented(self, rows: Tensor, draws: Tensor, pad: int = 4) -> Tensor:
        """Return these rows randomly cropped, half of them flipped, by ``draws`` ``[N, 3]`` in [0, 1).

        Images larger than the network's input are cropped from anywhere, others are zero-padded by ``pad`` first.
        """
        picked = self._picked(rows)
        if self.preprocess is None:
            return augment.flip(picked, draws[:, 2] < 0.5, 3)
        return self.preprocess.normalize(augment.crop_and_flip(picked, self.preprocess.size, draws, pad))


def shuffled(count: int) -> Tensor:
    """Return the fixed shuffle of so many images: the first ones calibrate, the last ones may be held out."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))


def _silent(items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
    return items


@dataclass
class Context:
    """Given to every step.

    ``parent`` is the traced float network, before any step changed it; ``reference`` the float network that the step
    quantize was given, in the Q-graph's own nodes, with the channels that equalize_activations rescales. ``teacher`` is
    the float network that the recipe names as one. ``work`` is a folder for what lets an interrupted run go on (None:
    keep nothing), ``kept`` what was put there, ``code`` the commit of the code that runs. ``curves`` holds the epochs
    of every training, as rows of a CSV. ``earlier`` sums up the seconds of interrupted runs that this one goes on from.
    ``augmented`` tells whether the last training saw augmented images.
    """

    quant: QuantConfig
    calibration: Images
    parent: fx.GraphModule
    seed: int = 0
    budget: str = "fast"
    progress: Callable[[Iterable[Any], str, int | None], Iterable[Any]] = _silent
    reference: fx.GraphModule | None = None
    log: dict[str, Any] = field(default_factory=dict)
    position: int = 0
    teacher: fx.GraphModule | None = None
    work: Path | None = None
    curves: list[dict[str, Any]] = field(default_factory=list)
    earlier: float = 0.0
    augmented: bool = False
    kept: list[Path] = field(default_factory=list)
    code: str = "unknown"

    def generator(self) -> torch.Generator:
        """Return a generator that depends on the recipe's seed and on the position of the step alone."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.position)

    def iterations(self, fast: int, full: int, chosen: int | None) -> int:
        """Return the recipe's own count, or the budget's."""
        return chosen if chosen is not None else (full if self.budget == "full" else fast)
