"""Give all channels of a tensor the same range, so that one scale serves them all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.errors import QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QNode, QWeighted
from zoo.quant.observers.mse import Mse
from zoo.steps._pairs import depthwise, pairs_of
from zoo.steps._walk import float_twin, require_no_norms


@dataclass(frozen=True)
class EqualizeActivations:
    """Divide each output channel of a layer by its range, and multiply the next layer's weight for that channel.

    As cross-layer equalization (Nagel et al. 2019, eq. 7-8), but by the activations' ranges: with 4 bits, channels
    that fill a tenth of their tensor's range have one code left. The range of a channel is the clip under which it
    would lose least, in mean square, if it had the tensor's bits for itself; ``samples`` of its values from each of
    ``images`` calibration images tell. Where the next layer is depthwise, scales per output channel on both sides
    absorb the factor and the equalization costs nothing; elsewhere the next weight's columns spread, so only the power
    ``strength`` of the factor is moved (Xiao et al. 2023, eq. 4). A ReLU6 becomes a cap per channel, which the
    quantizer's own clamp then stands for. Between quantize and calibrate.
    """

    takes: ClassVar = ("quantized",)

    images: int = 128
    batch: int = 32
    samples: int = 64
    strength: float = 0.5

    def __post_init__(self) -> None:
        """Refuse an empty estimate."""
        if min(self.images, self.batch, self.samples) < 1 or not 0 <= self.strength <= 1:
            raise ValueError("images, batch and samples must be positive, strength in [0, 1]")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph with the same float function; QuantError at another place, or with BatchNorm kept."""
        nodes = [m for m in net.modules() if isinstance(m, QNode)]
        if not nodes or any(m.out.active for m in nodes):
            raise QuantError("equalize_activations: put it between quantize and calibrate")
        require_no_norms(net, "equalize_activations")
        net = clone(net)
        # a power of two above the cap of a channel would clamp nothing there
        pairs = [
            (first, second)
            for first, second in pairs_of(net)
            if first.out.fmt.scale == "float" or (first.act != "relu6" and first.cap is None)
        ]
        ranges = self._ranges(net, [first for first, _ in pairs], ctx)
        for first, second in pairs:
            if float(ranges[first].max()) <= 0:  # nothing but zeros leaves the layer: there is no range to share
                continue
            share = ranges[first] / ranges[first].max()
            _rescale(first, second, share.clamp(min=1e-3) ** (1.0 if depthwise(second) else self.strength))
        ctx.log["equalize_activations"] = {"pairs": len(pairs)}
        ctx.reference = float_twin(net)
        return net

    def _ranges(self, net: fx.GraphModule, layers: list[QWeighted], ctx: Context) -> dict[QWeighted, Tensor]:
        seen: dict[QWeighted, list[Tensor]] = {layer: [] for layer in layers}
        generator = ctx.generator()

        def keep(layer: QWeighted, args: tuple[Tensor, ...], y: Tensor) -> None:
            rows = y.transpose(0, 1).flatten(1)
            picked = torch.randperm(rows.shape[1], generator=generator)[: self.samples * len(y)]
            seen[layer].append(rows[:, picked])

        hooks = [layer.register_forward_hook(keep) for layer in layers]
        try:
            count = -(-self.images // self.batch)
            for batch in ctx.progress(ctx.calibration.batches(self.batch, self.images), "channel ranges", count):
                net(batch)
        finally:
            for hook in hooks:
                hook.remove()
        observer = Mse(p=2.0, candidates=20)
        found = {}
        for layer, parts in seen.items():
            rows = torch.cat(parts, 1)
            low, high = observer.range(rows, rows.amin(1), rows.amax(1), layer.out)
            found[layer] = torch.maximum(-low, high)
        return found


def _rescale(first: QWeighted, second: QWeighted, factor: Tensor) -> None:
    first.weight.data = first.weight.data / factor.reshape([-1] + [1] * (first.weight.dim() - 1))
    first.bias.data = first.bias.data / factor
    if first.act == "relu6":
        first.act, first.cap = "relu", 6.0 / factor
    elif first.cap is not None:
        first.cap = first.cap / factor
    if depthwise(second):
        second.weight.data = second.weight.data * factor.reshape(-1, 1, 1, 1)
    else:
        second.weight.data = second.weight.data * factor.reshape([1, -1] + [1] * (second.weight.dim() - 2))
