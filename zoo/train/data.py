"""The training images in the order and form in which a training sees them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from zoo import augment, ranks
from zoo.context import Images, shuffled
from zoo.errors import DataError

_EVALUATED = 500  # images of a batch without gradients


class Data:
    """Images and labels on a device, less the ``holdout`` images that no step of the training may see.

    The images held out are the last of the fixed shuffle whose first ones calibrate: a step that takes fewer than the
    others sees none of them.
    """

    def __init__(
        self, images: Images, device: torch.device, *, holdout: int, augment: bool, cutout: int, alternate: bool = False
    ) -> None:
        """Raise DataError for images without labels, or fewer than two for training.

        ``alternate`` mirrors each image in every other epoch, in place of by chance.
        """
        if images.labels is None:
            raise DataError("train: the images have no labels; train needs a data set, not a loader of images")
        if holdout > len(images) - 2:
            raise DataError(f"train: {len(images)} images, {holdout} of them held out; lower train.holdout")
        order = shuffled(len(images))
        self.rows = torch.sort(order[: len(images) - holdout]).values
        self.held = order[len(images) - holdout :]
        self.images, self.augment, self.cutout = images.on(device), augment, cutout
        assert self.images.labels is not None
        self.labels = self.images.labels
        self.side = torch.argsort(order) % 2 if alternate else None  # half of each class, however the file is sorted

    def __len__(self) -> int:
        """Return the number of images to train on."""
        return len(self.rows)

    def batch(self, chosen: Tensor, generator: torch.Generator, epoch: int = 0) -> tuple[Tensor, Tensor]:
        """Return augmented images ``[N, C, H, W]`` and their labels; ``chosen`` counts the images to train on.

        Of several processes each gets its own part of the same images, drawn alike.
        """
        mine = ranks.share(len(chosen))
        rows = self.rows[chosen[mine]]
        if self.augment:
            draws = torch.rand(len(chosen), 3, generator=generator)[mine]
            if self.side is not None:
                draws[:, 2] = (self.side[rows] + epoch) % 2
            x = self.images.augmented(rows, draws)
        else:
            x = self.images.at(rows)
        if self.cutout:
            x = augment.cutout(x, torch.rand(len(chosen), 2, generator=generator)[mine], self.cutout)
        return x, self.labels[rows.to(self.labels.device)]

    def held_out(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images held out, as they are, with their labels."""
        for rows in torch.split(self.held, _EVALUATED):
            yield self.images.at(rows), self.labels[rows.to(self.labels.device)]
