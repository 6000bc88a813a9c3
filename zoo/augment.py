"""Random crops, flips and holes, a whole batch at once; every random number is drawn by the caller."""

from __future__ import annotations

import torch
from torch import Tensor


def crop_and_flip(pixels: Tensor, size: tuple[int, int], draws: Tensor, pad: int) -> Tensor:
    """Return crops ``[N, *size, C]`` of pictures ``[N, H, W, C]``, flipped where the third draw is below 0.5.

    ``draws`` ``[N, 3]`` in [0, 1) place the crop from top and left. Pictures of the crop's size, or up to 3 pixels
    higher, are zero-padded by ``pad`` on all sides first.
    """
    height, width = size
    count, rows, columns, channels = pixels.shape
    if rows <= height + 3:
        padded = pixels.new_zeros(count, rows + 2 * pad, columns + 2 * pad, channels)
        padded[:, pad : pad + rows, pad : pad + columns] = pixels
        pixels = padded
    pixels = pixels.contiguous()
    room = (pixels.shape[1] - height + 1, pixels.shape[2] - width + 1)
    draws = draws.to(pixels.device)
    top, left = (draws[:, 0] * room[0]).long(), (draws[:, 1] * room[1]).long()
    stride = pixels.stride()
    # every window of every picture, as a view; only the chosen ones are copied
    windows = pixels.as_strided((count, *room, height, width * channels), (*stride[:3], stride[1], 1))
    chosen = windows[torch.arange(count, device=pixels.device), top, left].view(count, height, width, channels)
    return flip(chosen, draws[:, 2] < 0.5, 2)


def flip(pixels: Tensor, chosen: Tensor, axis: int) -> Tensor:
    """Return the pictures, those ``chosen`` (bool ``[N]``) mirrored along ``axis``."""
    chosen = chosen.to(pixels.device)
    return torch.where(chosen.reshape([-1] + [1] * (pixels.dim() - 1)), pixels.flip(axis), pixels)


def cutout(x: Tensor, draws: Tensor, side: int) -> Tensor:
    """Return ``x`` ``[N, C, H, W]`` with a square of zeros each (DeVries and Taylor 2017), cut off at edges.

    ``draws`` ``[N, 2]`` in [0, 1) place the centre.
    """
    draws = draws.to(x.device)
    inside = []
    for axis in (2, 3):
        centre = (draws[:, axis - 2] * x.shape[axis]).long()[:, None]
        place = torch.arange(x.shape[axis], device=x.device)[None]
        inside.append((place >= centre - side // 2) & (place < centre - side // 2 + side))
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return x.masked_fill(hole, 0.0)
