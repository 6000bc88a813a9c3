"""Move the part of a bias that a ReLU never cuts into the next layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from zoo.context import Context
from zoo.graph.fold import clone
from zoo.steps.equalize import layer_pairs


@dataclass(frozen=True)
class AbsorbBias:
    """High-bias absorption: ``c = max(0, beta - sigmas gamma)``, b1 -= c, b2 += W2 c (Nagel et al. 2019, 4.1.3).

    Without BatchNorm statistics left in a folded graph, ``beta`` and ``gamma`` are the mean and the standard deviation
    of the producer's output on ``images`` calibration images. Run it after equalize. Zero padding sees ``-c`` at the
    border of a padded consumer, so only consumers without padding take part.
    """

    takes: ClassVar = ("float",)

    sigmas: float = 3.0
    images: int = 256

    def __post_init__(self) -> None:
        """Refuse an empty estimate."""
        if self.images < 1 or self.sigmas < 0:
            raise ValueError("images must be positive and sigmas not negative")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the graph with smaller biases and the same outputs (up to the rare value below ``c``).

        Raises GraphError after quantize or before fold_batchnorm.
        """
        net = clone(net)
        pairs = [
            (a, b)
            for a, b in layer_pairs(net, "absorb_bias")
            if a.bias is not None and b.bias is not None and _unpadded(b)
        ]
        moments = channel_moments([a for a, _ in pairs], net, ctx, self.images)
        for first, second in pairs:
            assert first.bias is not None and second.bias is not None
            mean, std = moments[first]
            c = (mean - self.sigmas * std).clamp(min=0)
            first.bias.data = first.bias.data - c
            weight = second.weight.data
            if isinstance(second, nn.Conv2d) and second.groups > 1:
                shift = weight.sum((1, 2, 3)) * c
            else:
                shift = (weight.flatten(2).sum(2) if weight.dim() == 4 else weight) @ c
            second.bias.data = second.bias.data + shift
        ctx.log["absorb_bias"] = {"pairs": len(pairs)}
        return net


def _unpadded(layer: nn.Module) -> bool:
    return not isinstance(layer, nn.Conv2d) or all(p == 0 for p in getattr(layer, "pad", (0, 0, 0, 0)))


def channel_moments(
    layers: list[nn.Conv2d | nn.Linear], net: fx.GraphModule, ctx: Context, images: int
) -> dict[nn.Module, tuple[Tensor, Tensor]]:
    """Return mean and standard deviation ``[C]`` of the layers' outputs over calibration images."""
    sums: dict[nn.Module, list[Tensor]] = {}

    def hook(module: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
        dims = [d for d in range(y.dim()) if d != 1]
        wide = y.double()
        part = [wide.mean(dims) * len(y), wide.square().mean(dims) * len(y), torch.tensor(float(len(y)))]
        sums[module] = [a + b for a, b in zip(sums[module], part, strict=True)] if module in sums else part

    hooks = [layer.register_forward_hook(hook) for layer in layers]
    try:
        for batch in ctx.progress(ctx.calibration.batches(32, images), "moments", -(-images // 32)):
            net(batch)
    finally:
        for handle in hooks:
            handle.remove()
    found = {}
    for module, (total, square, count) in sums.items():
        mean = total / count
        found[module] = (mean.float(), (square / count - mean**2).clamp(min=0).sqrt().float())
    return found
