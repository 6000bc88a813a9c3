"""Small networks and contexts that tests of several folders share."""

from __future__ import annotations

import torch
from torch import fx, nn

from zoo.context import Context, Images
from zoo.graph.trace import trace
from zoo.models import resnet8
from zoo.quant.spec import Format, Override, QuantConfig

SIZE = 16


def config(weight: int = 4, act: int = 8, mid_rise: bool = False) -> QuantConfig:
    """Return the formats of the shipped recipes: first and last layer with 8-bit weights."""
    eight = {"bits": 8, "mid_rise": False}
    ends = (Override(":first", weight=eight), Override(":last", weight=eight))
    return QuantConfig(
        weight=Format(bits=weight, granularity="per_channel", mid_rise=mid_rise), act=Format(bits=act, symmetric=False),
        overrides=ends if weight < 8 else (),
    )  # fmt: skip


def small_resnet() -> nn.Module:
    """Return a ResNet8 with random weights and BatchNorm statistics that are not the identity."""
    torch.manual_seed(3)
    net = resnet8.build(10, 3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.3)
            nn.init.normal_(module.running_mean, 0.0, 0.3)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net.eval()


def images(count: int = 64, size: int = SIZE) -> torch.Tensor:
    """Return smooth random pictures: neighbouring pixels resemble each other, as in real ones."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")


def start(weight: int = 4, act: int = 8, count: int = 64, mid_rise: bool = False) -> tuple[fx.GraphModule, Context]:
    """Return a traced float graph and a context with calibration images."""
    pictures = images(count)
    parent = trace(small_resnet(), pictures[:1])
    return parent, Context(config(weight, act, mid_rise), Images(pictures), parent)
