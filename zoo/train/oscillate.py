"""Which low-bit weights oscillate between two integers (Nagel et al. 2022, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, fx

from zoo.train.layers import low_bit, weight_codes

LIMIT = 0.005  # a weight whose frequency is above it counts as oscillating (section 5)


class Oscillations:
    """Counts, step by step, how often each weight of the low-bit layers oscillates.

    An oscillation is a change of the integer against the direction of the change before. Its frequency is an
    exponential moving average with ``momentum`` (eq. 4).
    """

    def __init__(self, net: fx.GraphModule, momentum: float = 1e-3) -> None:
        """Start with no oscillation seen."""
        self.layers, self.momentum = low_bit(net), momentum
        named = {module: name for name, module in net.named_modules()}
        self.names = [named[layer] for layer in self.layers]
        self.state: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            codes = weight_codes(layer)
            self.state |= {
                f"{i}.codes": codes, f"{i}.direction": torch.zeros_like(codes),
                f"{i}.frequency": torch.zeros_like(codes),
            }  # fmt: skip

    def update(self, step: int, total: int) -> None:
        """Look at all weights after a step of the optimizer."""
        for i, layer in enumerate(self.layers):
            self.see(i, weight_codes(layer))

    @torch.no_grad()
    def see(self, index: int, now: Tensor) -> None:
        """Take the integers that a layer has now."""
        codes, direction, frequency = (self.state[f"{index}.{key}"] for key in ("codes", "direction", "frequency"))
        change = torch.sign(now - codes)
        oscillates = (change != 0) & (change == -direction)
        frequency.mul_(1 - self.momentum).add_(oscillates.to(frequency.dtype), alpha=self.momentum)
        direction.copy_(torch.where(change != 0, change, direction))
        codes.copy_(now)

    def facts(self, held: Sequence[Tensor] = ()) -> dict[str, object]:
        """Return the percentage of oscillating weights, over all layers and layer by layer.

        ``held`` are masks, one per layer, of weights that cannot move any more: their frequency only remembers.
        """
        seen = [self.state[f"{i}.frequency"] > LIMIT for i in range(len(self.layers))]
        seen = [s & ~h for s, h in zip(seen, held, strict=True)] if held else seen
        parts = {name: round(100.0 * float(s.float().mean()), 3) for name, s in zip(self.names, seen, strict=True)}
        share = 100.0 * sum(int(s.sum()) for s in seen) / max(1, sum(s.numel() for s in seen))
        return {"oscillating_percent": round(share, 3), "oscillating_percent_by_layer": parts}
