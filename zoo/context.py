"""What a step may read: formats, calibration images, the float parent, a seeded generator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from zoo.errors import DataError
from zoo.preprocess import Preprocess
from zoo.quant.spec import QuantConfig

if TYPE_CHECKING:
    import numpy as np


class Images:
    """Unlabelled images a step may draw batches from: uint8 with a preprocessing, or ready float tensors."""

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
        batches = [b[0] if isinstance(b, tuple | list) else b for b in loader]
        if not batches:
            raise DataError("calibration: the loader is empty; give at least one batch of images")
        for i, batch in enumerate(batches):
            if not isinstance(batch, Tensor) or batch.dim() != 4 or not batch.is_floating_point():
                raise DataError(
                    f"calibration: batch {i} must be a float tensor [N, C, H, W], got {type(batch).__name__}"
                )
            if not bool(torch.isfinite(batch).all()):
                raise DataError(f"calibration: batch {i} holds NaN or infinity")
        return cls(torch.cat(batches).float())

    def at(self, rows: Tensor | slice) -> Tensor:
        """Return the preprocessed images of some rows, centre-cropped."""
        if isinstance(self.pixels, Tensor):
            return self.pixels[rows]
        assert self.preprocess is not None
        return self.preprocess.batch(self.pixels[rows if isinstance(rows, slice) else rows.numpy()])

    def batches(self, size: int, limit: int | None = None) -> Iterator[Tensor]:
        """Yield the first ``limit`` images of a fixed shuffle: many data sets are stored class by class."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[: limit or len(self)]
        for rows in torch.split(order, size):
            yield self.at(rows)

    def augmented(self, rows: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
        """Return these rows randomly cropped, half of them flipped.

        Images larger than the network's input are cropped from anywhere, others are zero-padded by ``pad`` first.
        """
        if isinstance(self.pixels, Tensor):
            x = self.pixels[rows].clone()
            flip = torch.rand(len(rows), generator=generator) < 0.5
            x[flip] = x[flip].flip(3)
            return x
        import numpy as np

        assert self.preprocess is not None
        height, width = self.preprocess.size
        source = self.pixels[rows.numpy()]
        if source.shape[1] <= height + 3:
            source = np.pad(source, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        room = (source.shape[1] - height + 1, source.shape[2] - width + 1)
        draws = torch.rand(len(rows), 3, generator=generator).numpy()
        out = np.empty((len(rows), height, width, source.shape[3]), np.uint8)
        for i, (a, b, flip) in enumerate(draws):
            top, left = int(a * room[0]), int(b * room[1])
            crop = source[i, top : top + height, left : left + width]
            out[i] = crop[:, ::-1] if flip < 0.5 else crop
        return self.preprocess.normalize(out)


def _silent(items: Iterable[Any], label: str, total: int | None) -> Iterable[Any]:
    return items


@dataclass
class Context:
    """Given to every step.

    ``parent`` is the traced float network, before any step changed it; ``reference`` the float network that the step
    quantize was given, in the Q-graph's own nodes.
    """

    quant: QuantConfig
    calibration: Images
    parent: fx.GraphModule
    seed: int = 0
    budget: str = "fast"
    train: Images | None = None
    progress: Callable[[Iterable[Any], str, int | None], Iterable[Any]] = _silent
    reference: fx.GraphModule | None = None
    log: dict[str, Any] = field(default_factory=dict)
    position: int = 0

    def generator(self) -> torch.Generator:
        """Return a generator that depends on the recipe's seed and on the position of the step alone."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.position)

    def iterations(self, fast: int, full: int, chosen: int | None) -> int:
        """Return the recipe's own count, or the budget's."""
        return chosen if chosen is not None else (full if self.budget == "full" else fast)
