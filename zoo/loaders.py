"""The batches of a user's own loader, checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from zoo.errors import DataError


def batches(loader: Iterable[Any], what: str) -> Iterator[tuple[Tensor, Any]]:
    """Yield float32 images ``[N, C, H, W]`` and what comes second in the batch, None where it is the images alone.

    Raises DataError, beginning with ``what`` the images are for, where a batch holds no images, NaN or infinity, or
    images of another size than the first one, and for a loader without batches.
    """
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor):
        raise DataError(f"{what}: must be a loader of batches, got {_seen(loader)}; put a single batch into a list")
    first: list[int] | None = None
    for i, batch in enumerate(loader):
        parts = batch if isinstance(batch, tuple | list) and batch else [batch]
        images = parts[0]
        if not isinstance(images, Tensor) or images.dim() != 4 or not images.is_floating_point():
            raise DataError(f"{what}: batch {i} must be a float tensor [N, C, H, W], got {_seen(images)}")
        if not bool(torch.isfinite(images).all()):
            raise DataError(f"{what}: batch {i} holds NaN or infinity")
        size = list(images.shape[1:])
        first = first or size
        if size != first:
            raise DataError(f"{what}: batches hold images of {first} and {size}; make them equal")
        yield images.float(), parts[1] if len(parts) > 1 else None
    if first is None:
        raise DataError(f"{what}: the loader is empty; give at least one batch of images")


def _seen(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return type(value).__name__
