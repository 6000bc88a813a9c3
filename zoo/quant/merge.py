"""Merge the BatchNorm that was trained inside a Q-layer into the layer's codes, scales and bias."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from zoo.graph.fold import clone
from zoo.quant.layers import QWeighted
from zoo.quant.quantizer import Quantizer

_LEAST = 1e-20  # a factor of zero leaves the bias alone; the scale has to stay positive


def merge_batchnorm(net: fx.GraphModule) -> fx.GraphModule:
    """Return the Q-graph without BatchNorm, masks and weight normalisation; the function in eval mode is the same.

    With ``f = gamma / sqrt(v + eps)`` per channel: codes times ``sign(f)``, weight scale times ``|f|``, bias
    ``(b - m) f + beta`` (computed in float64). No code is rounded anew, so the merge is exact: see ``QWeighted.sign``.
    """
    net = clone(net)
    for module in net.modules():
        if isinstance(module, QWeighted):
            _merge(module)
    return net


@torch.no_grad()
def _merge(layer: QWeighted) -> None:
    latent, norm, sign = layer.latent(), layer.norm, layer.sign()
    layer.mask = layer.standard_deviation = layer.norm = None
    if norm is None:
        layer.weight.copy_(latent)
        return
    assert norm.running_var is not None and norm.running_mean is not None
    old = layer.weight_quantizer
    factor = 1.0 / (norm.running_var.double() + norm.eps).sqrt()
    if norm.weight is not None:
        factor = factor * norm.weight.double()
    shift = norm.bias.double() if norm.bias is not None else torch.zeros_like(factor)
    layer.bias.copy_(((layer.bias.double() - norm.running_mean.double()) * factor + shift).float())
    new = Quantizer(replace(old.fmt, granularity="per_channel"), signed=old.signed, channels=len(factor))
    column = [-1] + [1] * (latent.dim() - 1)
    if bool(old.ready):
        codes = old.codes(latent, sign)
        scale = (old.scale.double() * factor.abs().clamp(min=_LEAST)).clamp(min=1e-30).float()
        new.set_qparams(scale, old.zero_point)
        layer.weight.copy_(
            (codes - old.zero_point.reshape(-1).expand(len(factor)).reshape(column) + old.fmt.offset)
            * scale.reshape(column)
        )
    else:
        layer.weight.copy_(latent * factor.float().reshape(column))
    layer.weight_quantizer = new
