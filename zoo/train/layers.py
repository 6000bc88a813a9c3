"""Which layers of a Q-graph the stabilizers look after, and their codes."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from zoo.quant import ops
from zoo.quant.layers import QWeighted
from zoo.quant.quantizer import signed_scale

LOW = 4  # bits: weights above it do not oscillate enough to matter (Nagel et al. 2022)


def low_bit(net: fx.GraphModule) -> list[QWeighted]:
    """Return the layers whose weights have at most 4 bits."""
    return [m for m in net.modules() if isinstance(m, QWeighted) and m.weight_quantizer.fmt.bits <= LOW]


@torch.no_grad()
def weight_scale(layer: QWeighted) -> Tensor:
    """Return the scale in use, positive, in a shape that broadcasts over the weight."""
    return _scale(layer, None)


def _scale(layer: QWeighted, sign: Tensor | None) -> Tensor:
    quantizer = layer.weight_quantizer
    scale = quantizer.scale if quantizer.learner is None else quantizer.learner.scale()
    signed, axis = signed_scale(scale.detach(), sign, quantizer.axis)
    return ops.expand(signed, layer.weight, axis)


@torch.no_grad()
def weight_limits(layer: QWeighted) -> tuple[Tensor, Tensor]:
    """Return the smallest and largest weight that is not clipped, broadcasting over the weight."""
    quantizer, scale = layer.weight_quantizer, _scale(layer, layer.sign())
    zero = ops.expand(quantizer.zero_point, layer.weight, quantizer.axis)
    ends = [(end - zero + quantizer.fmt.offset) * scale for end in (quantizer.qmin, quantizer.qmax)]
    return torch.minimum(*ends), torch.maximum(*ends)


@torch.no_grad()
def weight_codes(layer: QWeighted) -> Tensor:
    """Return the centred codes of the latent weight, float32 in its shape; mid-rise ones lie halfway between integers.

    Times ``weight_scale`` they are the quantized weight. That scale is positive, so that no code changes where
    BatchNorm's factor crosses zero and the weight does not move.
    """
    (low, high), offset = weight_limits(layer), layer.weight_quantizer.fmt.offset
    sign = layer.sign()
    codes = torch.round(layer.latent().clamp(low, high) / _scale(layer, sign) - offset) + offset
    return codes if sign is None else codes * ops.expand(sign, codes, 0)
