"""Let channels that carry next to nothing carry a second copy of a channel that matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from zoo.context import Context
from zoo.graph.fold import clone
from zoo.quant.layers import QConv2d, QWeighted
from zoo.steps._pairs import depthwise, pairs_of
from zoo.steps._walk import float_twin, require_calibrated

Chain = tuple[QWeighted, QWeighted, QWeighted]


@dataclass(frozen=True)
class ReuseChannels:
    """Copy the channels of a depthwise convolution that matter most over those that matter least, half a step apart.

    Trained MobileNets have depthwise channels whose output hardly ever changes, and hardware computes them all the
    same. Where a layer P, a depthwise convolution D and a layer N follow each other, such a channel takes over another
    one's weights in P and D, N reads each of the two copies with half the weight, and the mean of what N used to read
    there moves into its bias. One copy enters its quantizers a quarter of a step above, the other a quarter below: the
    mean of the two has twice the levels, so the copied channel gains a bit at no cost. (Outlier channel splitting, Zhao
    et al. 2019, section 3.3, splits in this way by adding channels.)

    Gains and losses are shares of the variance of N's outputs: a channel of variance ``v`` that N reads with weights
    ``w`` carries ``v sum w^2 / var(y)``, and a second copy takes away three quarters of the noise that rounding in P
    and D adds to it, ``(s_D^2 + s_P^2 sum w_D^2) / 12`` in place of ``v``. A channel is given up where that gain is at
    least ``margin`` times the loss. Place it between calibrate and the steps that round; they also settle the biases.
    """

    takes: ClassVar = ("calibrated",)

    images: int = 128
    batch: int = 32
    margin: float = 3.0

    def __post_init__(self) -> None:
        """Refuse an empty estimate and trades that lose."""
        if self.images < 1 or self.batch < 1 or self.margin < 1:
            raise ValueError("images and batch must be positive, margin at least 1")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the Q-graph with copies; QuantError for one that is not calibrated."""
        require_calibrated(net, "reuse_channels")
        net = clone(net)
        pairs = pairs_of(net)
        after = dict(pairs)
        chains = [
            (p, d, after[d]) for p, d in pairs if _mixes(p) and depthwise(d) and d in after and not depthwise(after[d])
        ]
        moments = self._moments(net, ctx)
        names = {module: name for name, module in net.named_modules()}
        copies: dict[str, int] = {}
        for chain in chains:
            mean, variance = moments[names[chain[1]]]
            trades = self._trades(chain, variance, moments[names[chain[2]]][1])
            for source, target in trades:
                _copy(chain, source, target, mean[target])
            if trades:
                copies[names[chain[1]]] = len(trades)
        ctx.log["reuse_channels"] = copies
        return net

    def _trades(self, chain: Chain, variance: Tensor, outputs: Tensor) -> list[tuple[int, int]]:
        """Return (copied channel, channel given up), best first; ``outputs`` is the variance of N's."""
        first, middle, last = chain
        energy = last.weight.square().reshape(*last.weight.shape[:2], -1).sum(2)
        share = (energy / outputs.clamp(min=1e-12)[:, None]).sum(0)
        taps = middle.weight.flatten(1).square().sum(1)
        noise = (middle.out.scale.square() + first.out.scale.square() * taps) / 12
        gain, loss = 0.75 * share * torch.minimum(noise, variance), share * variance
        trades: list[tuple[int, int]] = []
        seen: set[int] = set()
        best, least = gain.argsort(descending=True, stable=True).tolist(), loss.argsort(stable=True).tolist()
        for source, target in zip(best, least, strict=True):
            if not gain[source] > self.margin * loss[target] or seen & {source, target} or source == target:
                break
            trades.append((source, target))
            seen |= {source, target}
        return trades

    def _moments(self, net: fx.GraphModule, ctx: Context) -> dict[str, tuple[Tensor, Tensor]]:
        """Return mean and variance [C] of each layer's float outputs."""
        twin = float_twin(net)
        names = {module: name for name, module in twin.named_modules() if isinstance(module, QWeighted)}
        seen: dict[str, list[Tensor]] = {name: [] for name in names.values()}

        def keep(layer: QWeighted, args: tuple[Tensor, ...], y: Tensor) -> None:
            rows = y.transpose(0, 1).flatten(1).double()
            seen[names[layer]].append(torch.stack([rows.mean(1), rows.square().mean(1)]) * len(y))

        for layer in names:
            layer.register_forward_hook(keep)
        count = min(self.images, len(ctx.calibration))
        batches = ctx.calibration.batches(self.batch, count)
        for batch in ctx.progress(batches, "channel moments", -(-count // self.batch)):
            twin(batch)
        found = {}
        for name, parts in seen.items():
            mean, square = torch.stack(parts).sum(0) / count
            found[name] = (mean.float(), (square - mean.square()).clamp(min=0).float())
        return found


def _mixes(layer: QWeighted) -> bool:
    """Tell whether all output channels read the same inputs, so that the weights of one may serve another."""
    return not isinstance(layer, QConv2d) or layer.groups == 1


def _copy(chain: Chain, source: int, target: int, constant: Tensor) -> None:
    first, middle, last = chain
    last.bias.data += last.weight[:, target].flatten(1).sum(1) * constant
    last.weight.data[:, source] /= 2
    last.weight.data[:, target] = last.weight[:, source]
    # the shift of P's copies, as it comes through D, would otherwise add to the shift of D's own
    through = first.out.scale / 4 * middle.weight[source].sum()
    for layer, shift in ((first, first.out.scale / 4), (middle, middle.out.scale / 4 - through)):
        layer.weight.data[target] = layer.weight[source]
        layer.bias.data[target] = layer.bias[source] - shift
        layer.bias.data[source] += shift.squeeze()
        if layer.cap is not None:
            layer.cap[target] = layer.cap[source]
        if layer.weight_quantizer.axis is not None:
            layer.weight_quantizer.scale.data[target] = layer.weight_quantizer.scale[source]
            layer.weight_quantizer.zero_point[target] = layer.weight_quantizer.zero_point[source]
