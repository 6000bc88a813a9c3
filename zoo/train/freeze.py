"""Iterative freezing of oscillating weights (Nagel et al. 2022, section 4.3, algorithm 1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from zoo.train.layers import weight_codes, weight_scale
from zoo.train.oscillate import Oscillations
from zoo.train.schedule import rise


@dataclass(frozen=True)
class Freeze:
    """Freezes a weight's integer once its oscillations are frequent.

    Beyond a frequency (``zoo.train.oscillate``, with ``momentum``) that falls from ``high`` to ``low`` on half a cosine
    after the share ``start`` of all steps, the integer stays at its own rounded moving average.
    """

    high: float = 0.1
    low: float = 0.01
    momentum: float = 1e-3
    start: float = 0.25

    def __post_init__(self) -> None:
        """Refuse thresholds that freeze everything at the first oscillation."""
        if not 0 < self.momentum < 1 or not 0 <= self.start < 1:
            raise ValueError("momentum must be in (0, 1) and start in [0, 1)")
        if self.low < 2 * self.momentum or self.high < self.low:
            raise ValueError("low must be at least twice momentum, and high at least low")


class Frozen:
    """What is known of each weight of the low-bit layers, and which are frozen."""

    def __init__(self, net: fx.GraphModule, settings: Freeze) -> None:
        """Start with nothing frozen."""
        self.settings, self.seen = settings, Oscillations(net, settings.momentum)
        self.state: dict[str, Tensor] = dict(self.seen.state)
        for i, layer in enumerate(self.seen.layers):
            codes = weight_codes(layer)
            self.state |= {f"{i}.mean": codes, f"{i}.frozen": torch.zeros_like(codes, dtype=torch.bool)}

    @torch.no_grad()
    def update(self, step: int, total: int) -> None:
        """Count oscillations after a step of the optimizer, freeze, and put frozen weights back onto their integers."""
        active = step >= self.settings.start * total
        limit = rise(step, total, self.settings.start, self.settings.high, self.settings.low)
        for i, layer in enumerate(self.seen.layers):
            codes, mean, frequency, frozen = (
                self.state[f"{i}.{key}"] for key in ("codes", "mean", "frequency", "frozen")
            )
            now = torch.where(frozen, codes, weight_codes(layer))
            self.seen.see(i, now)
            mean.lerp_(now, self.settings.momentum)
            if active:
                fresh = (frequency > limit) & ~frozen
                offset = self.seen.layers[i].weight_quantizer.fmt.offset
                codes.copy_(torch.where(fresh, torch.round(mean - offset) + offset, codes))
                frozen |= fresh
        self.hold()

    @torch.no_grad()
    def hold(self) -> None:
        """Put frozen weights onto their integers, whatever has moved them or their scale."""
        for i, layer in enumerate(self.seen.layers):
            codes, frozen = self.state[f"{i}.codes"], self.state[f"{i}.frozen"]
            layer.weight.copy_(torch.where(frozen, codes * weight_scale(layer), layer.weight))

    def facts(self) -> dict[str, object]:
        """Return what is known of oscillations, and the share of frozen weights in percent; these do not oscillate."""
        held = [self.state[f"{i}.frozen"] for i in range(len(self.seen.layers))]
        return self.seen.facts(held) | {"frozen_percent": round(self.share(), 3)}

    def share(self) -> float:
        """Return the share of frozen weights, in percent of the layers looked after."""
        parts = [t for name, t in self.state.items() if name.endswith(".frozen")]
        return 100.0 * sum(int(t.sum()) for t in parts) / max(1, sum(t.numel() for t in parts))
