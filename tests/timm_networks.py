"""timm networks of every family that the package claims to take, with random weights that do not degenerate."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zoo.models import from_timm

NETWORKS: dict[str, dict[str, Any]] = {
    "mobilenetv2_100": {"pad_type": "same"},
    "tf_efficientnet_lite0": {},
    "mobilenetv3_small_100": {},
    "resnet18": {},
    "efficientnet_lite0": {},
    "mobilenetv1_100": {},
    "mobilenetv4_conv_small": {},
    "ghostnet_050": {},
    "mixnet_s": {},
    "fasternet_t0": {},
}
SIZE = 64


def network(name: str, seed: int = 0) -> nn.Module:
    """Return the network with 10 classes in eval mode; BatchNorm has random gains and shifts, and measured statistics.

    Without the measured ones the shifts would drown what differs between pictures after a few layers.
    """
    torch.manual_seed(seed)
    net = from_timm.build(name, num_classes=10, **NETWORKS[name]).train()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.7, 1.3)
            nn.init.normal_(module.bias, 0.0, 0.2)
            module.momentum = None  # a plain average, over one batch
    with torch.no_grad():
        net(images(16, seed=2))
    return net.eval()


def images(count: int, seed: int = 1, size: int = SIZE) -> torch.Tensor:
    """Return smooth random pictures ``[count, 3, size, size]``: noise would look alike to every average pool."""
    coarse = torch.randn(count, 3, 3, 3, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
