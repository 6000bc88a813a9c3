"""Weights that are zero and stay so through training with quantization."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, fx

from zoo.quant.layers import QWeighted

_EVERY = 16  # steps between two masks while the share of zeros rises


@dataclass(frozen=True)
class Sparsify:
    """``magnitude``: the smallest weights of each layer, ``share`` of them, reached on a cubic ramp by ``until``.

    Zhu and Gupta (2017), eq. 1; the mask is fixed from then on. ``2:4``: of 4 neighbouring input channels the 2
    largest weights stay, chosen anew at each step; the rest decays by ``decay`` (SR-STE, Zhou et al. 2021, eq. 4-5).
    Gradients reach masked weights (straight-through). The first layer stays dense, and so do layers whose inputs are no
    multiple of 4.
    """

    kind: Literal["magnitude", "2:4"] = "magnitude"
    share: float = 0.5
    until: float = 0.5
    decay: float = 2e-4

    def __post_init__(self) -> None:
        """Refuse a share that leaves nothing or everything."""
        if not 0 < self.share < 1 or not 0 < self.until <= 1 or self.decay < 0:
            raise ValueError("share must be in (0, 1), until in (0, 1] and decay not negative")

    def layers(self, net: fx.GraphModule) -> list[QWeighted]:
        """Return the layers that lose weights."""
        found = [m for m in net.modules() if isinstance(m, QWeighted)][1:]
        return [m for m in found if m.weight.shape[1] % 4 == 0]

    def update(self, net: fx.GraphModule, step: int, total: int) -> None:
        """Set the masks that hold for this step, from the weights as they are quantized."""
        end = min(math.ceil(self.until * total), total - 1)
        if self.kind == "2:4":
            for layer in self.layers(net):
                layer.mask = two_of_four(layer.full().detach())
        elif step == end or (step < end and step % _EVERY == 0):
            share = self.share * (1.0 - (1.0 - step / max(1, end)) ** 3) if step < end else self.share
            for layer in self.layers(net):
                # what an earlier training has masked stays so
                if layer.mask is None or int((layer.mask == 0).sum()) < round(share * layer.mask.numel()):
                    layer.mask = largest(layer.full().detach(), share)

    @torch.no_grad()
    def pull(self, net: fx.GraphModule) -> None:
        """Add the decay of masked weights to their gradients (2:4)."""
        if self.kind == "2:4":
            for layer in self.layers(net):
                assert layer.mask is not None and layer.weight.grad is not None
                layer.weight.grad.add_((1.0 - layer.mask) * layer.weight, alpha=self.decay)


@torch.no_grad()
def largest(weight: Tensor, share: float) -> Tensor:
    """Return the mask (1 or 0) without the ``share`` smallest magnitudes; of equal ones the later stay."""
    mask = torch.ones_like(weight, memory_format=torch.contiguous_format)
    order = torch.argsort(weight.abs().contiguous().view(-1), stable=True)
    mask.view(-1)[order[: round(share * weight.numel())]] = 0.0
    return mask


@torch.no_grad()
def two_of_four(weight: Tensor) -> Tensor:
    """Return the mask of the 2 largest magnitudes in each 4 along the input channels (axis 1)."""
    rows = weight.abs().movedim(1, -1)
    fours = rows.reshape(*rows.shape[:-1], -1, 4)
    order = torch.argsort(fours, dim=-1, descending=True, stable=True)
    mask = torch.zeros_like(fours).scatter_(-1, order[..., :2], 1.0)
    return mask.reshape(rows.shape).movedim(-1, 1).contiguous()
