"""Weight normalisation before quantization (Li et al. 2020, APoT, eq. 8), with each channel's own deviation kept."""

from __future__ import annotations

import torch
from torch import fx

from zoo.train.layers import low_bit


@torch.no_grad()
def start(net: fx.GraphModule) -> None:
    """Let low-bit layers with a BatchNorm quantize ``(w - mean) / std`` times the deviation that they start with.

    The factor keeps calibrated ranges valid. Other layers have nothing behind them that would undo the shift, and a
    channel of one weight has no deviation.
    """
    for layer in low_bit(net):
        if layer.norm is not None and layer.weight[0].numel() > 1:
            layer.standard_deviation = layer.weight.flatten(1).std(1)


@torch.no_grad()
def finish(net: fx.GraphModule) -> None:
    """Make the normalised weights the layers' own."""
    for layer in low_bit(net):
        if layer.standard_deviation is not None:
            layer.weight.copy_(layer.latent())
            layer.standard_deviation = None
