"""VGG9 of quantlab: 14,029,706 parameters, six convolutions and three linear layers for 32x32 images."""

from __future__ import annotations

from torch import nn


def build(num_classes: int = 10) -> nn.Module:
    """Return the float network; BatchNorm after every layer but the last, no bias beside it."""
    network = nn.Sequential()
    channels = 3
    for i, wide in enumerate((128, 128, 256, 256, 512, 512), 1):
        network.add_module(f"conv{i}", nn.Conv2d(channels, wide, 3, padding=1, bias=False))
        network.add_module(f"bn{i}", nn.BatchNorm2d(wide))
        network.add_module(f"relu{i}", nn.ReLU())
        if i % 2 == 0:
            network.add_module(f"pool{i}", nn.MaxPool2d(2))
        channels = wide
    network.add_module("flatten", nn.Flatten(1))
    for i, (a, b) in enumerate(((8192, 1024), (1024, 1024)), 1):
        network.add_module(f"fc{i}", nn.Linear(a, b, bias=False))
        network.add_module(f"fc{i}_bn", nn.BatchNorm1d(b))
        network.add_module(f"fc{i}_relu", nn.ReLU())
    network.add_module("fc3", nn.Linear(1024, num_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network
