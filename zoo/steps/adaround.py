"""Learn for every weight whether it is rounded up or down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.quant.layers import QWeighted
from zoo.quant.rounding import LearnedRounding, beta, rounding_loss
from zoo.steps._least_squares import Quadratic, per_output, round_layers


@dataclass(frozen=True)
class Adaround:
    """AdaRound (Nagel et al. 2020, eq. 21-25) layer by layer, towards the float twin's outputs.

    The squared error is taken as the exact quadratic form over ``samples`` output positions of ``images`` calibration
    images rather than over a batch of them at each iteration, so an iteration costs the same however many images there
    are, and it has no sampling noise. ``iterations`` per layer: None takes the budget's (fast 500, full 10,000);
    ``rate`` is Adam's, ``weight`` the regularizer's. ``scales``, ``damping`` and ``passes`` (0: the layer's activation
    is left out of the error) as in the step gptq.
    """

    takes: ClassVar = ("calibrated",)

    iterations: int | None = None
    images: int = 256
    batch: int = 32
    samples: int = 32768
    rate: float = 0.01
    weight: float = 0.01
    damping: float | None = None
    scales: int = 20
    passes: int = 0

    def __post_init__(self) -> None:
        """Refuse counts below one and a damping under which a constant input has no solution."""
        if min(self.images, self.batch, self.samples) < 1 or (self.iterations is not None and self.iterations < 1):
            raise ValueError("images, batch, samples and iterations must be positive")
        if min(self.scales, self.passes, self.weight) < 0:
            raise ValueError("scales, passes and weight must not be negative")
        if self.rate <= 0 or (self.damping is not None and self.damping <= 0):
            raise ValueError("damping and rate must be positive")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph with rounded weights and corrected biases; QuantError for one that is not calibrated."""
        iterations = ctx.iterations(500, 10_000, self.iterations)
        return round_layers(net, ctx, "adaround", self, lambda layer, form: self._codes(layer, form, iterations))

    def _codes(self, layer: QWeighted, form: Quadratic, iterations: int) -> Tensor:
        quantizer = layer.weight_quantizer
        scale, zero = per_output(layer, quantizer.scale), per_output(layer, quantizer.zero_point)
        with torch.enable_grad():
            rounding = LearnedRounding(form.best, scale, zero, quantizer.qmin, quantizer.qmax)
            optimizer = torch.optim.Adam([rounding.logits], self.rate)
            for i in range(iterations):
                loss = form.error(rounding(form.best)).sum()
                if (power := beta(i, iterations)) is not None:
                    loss = loss + self.weight * rounding_loss(rounding.soft(), power)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return rounding.codes()
