"""Empirical bias correction: undo the shift that quantization gives every channel's mean."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from zoo.context import Context
from zoo.errors import QuantError
from zoo.graph.fold import clone
from zoo.quant.layers import QWeighted
from zoo.quant.quantizer import Quantizer


@dataclass(frozen=True)
class CorrectBias:
    """``b += E[float output] - E[quantized output]`` per channel, layer after layer (Nagel et al. 2019, section 4.2).

    The means are taken before the activation over ``images`` calibration images. Not after AdaRound or a
    reconstruction: those already remove the shift.
    """

    images: int = 256
    batch: int = 64

    def __post_init__(self) -> None:
        """Refuse an empty estimate."""
        if self.images < 1 or self.batch < 1:
            raise ValueError("images and batch must be positive")

    @torch.no_grad()
    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the corrected Q-graph. Cost: one float forward, and one quantized forward run layer by layer."""
        net = clone(net)
        layers = {n: m for n, m in net.named_modules() if isinstance(m, QWeighted)}
        if not layers or not all(bool(m.out.ready) for m in layers.values()):
            raise QuantError("correct_bias: the graph is not calibrated; put quantize and calibrate before it")
        batches = list(ctx.calibration.batches(self.batch, self.images))
        switched = [m for m in net.modules() if isinstance(m, Quantizer)]
        for quantizer in switched:
            quantizer.active = False
        reference: dict[str, Tensor] = {}
        for batch in ctx.progress(batches, "float means", len(batches)):
            _Means(net, layers, reference, len(batches)).run(batch)
        for quantizer in switched:
            quantizer.active = True
        _correct(net, layers, batches, reference)
        return net


def _output(layer: QWeighted, x: Tensor) -> Tensor:
    kept, act, layer.act = layer.out, layer.act, None
    layer.out = _PASS  # type: ignore[assignment]
    try:
        return layer(x)  # type: ignore[no-any-return]
    finally:
        layer.out, layer.act = kept, act


class _Pass(nn.Module):
    active, drop = True, 0.0

    def forward(self, x: Tensor) -> Tensor:
        return x


_PASS = _Pass()


class _Means(fx.Interpreter):
    """Runs one batch and adds each layer's output mean (before its activation) to ``sums``."""

    def __init__(self, net: fx.GraphModule, layers: dict[str, QWeighted], sums: dict[str, Tensor], count: int) -> None:
        super().__init__(net)
        self.layers, self.sums, self.count = layers, sums, count

    def call_module(self, target, args, kwargs):  # type: ignore[no-untyped-def]
        if target in self.layers:
            y = _output(self.layers[target], *args)
            mean = y.double().mean([d for d in range(y.dim()) if d != 1]) / self.count
            self.sums[target] = self.sums.get(target, torch.zeros_like(mean)) + mean
        return super().call_module(target, args, kwargs)


def _correct(
    net: fx.GraphModule, layers: dict[str, QWeighted], batches: list[Tensor], reference: dict[str, Tensor]
) -> None:
    values: dict[fx.Node, list[Tensor]] = {}
    modules = dict(net.named_modules())
    for node in net.graph.nodes:
        if node.op == "placeholder":
            values[node] = batches
        elif node.op == "call_module":
            sources = [values[a] for a in node.args]
            module, name = modules[str(node.target)], str(node.target)
            if name in layers:
                layer = layers[name]
                outputs = [_output(layer, *args) for args in zip(*sources, strict=True)]
                dims = [d for d in range(outputs[0].dim()) if d != 1]
                mean = torch.stack([y.double().mean(dims) for y in outputs]).mean(0)
                layer.bias.copy_(layer.bias + (reference[name] - mean).float())
            values[node] = [module(*args) for args in zip(*sources, strict=True)]
            for source in node.all_input_nodes:
                if all(user in values or user.op == "output" for user in source.users):
                    values.pop(source, None)
