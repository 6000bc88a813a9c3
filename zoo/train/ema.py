"""An exponential moving average of a network while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Average:
    """Averages every floating tensor of a state dict but masks: ``a <- d a + (1 - d) x``, BatchNorm's included.

    The decay ``d`` warms up as ``min(decay, (1 + n) / (10 + n))`` with n steps done, as in TensorFlow's average.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        """Start from the network as it is."""
        self.decay, self.steps = decay, 0
        kept = {n: t for n, t in net.state_dict().items() if t.is_floating_point() and n.rpartition(".")[2] != "mask"}
        self.values = {n: t.detach().clone() for n, t in kept.items()}

    @torch.no_grad()
    def update(self, net: nn.Module) -> None:
        """Take in the network after a step."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        state = net.state_dict()
        torch._foreach_lerp_(list(self.values.values()), [state[n] for n in self.values], 1.0 - decay)

    @torch.no_grad()
    def restore(self, values: dict[str, Tensor], steps: int) -> None:
        """Put back a saved average."""
        self.steps = steps
        for name, value in values.items():
            self.values[name].copy_(value)

    @torch.no_grad()
    def write(self, net: nn.Module) -> None:
        """Give the network the average."""
        state = net.state_dict()
        for name, value in self.values.items():
            state[name].copy_(value)
