"""MobileNetV2 (Sandler et al. 2018) for 32x32 images: stem and second stage with stride 1; 2,236,682 parameters."""

from __future__ import annotations

from torch import Tensor, nn

from zoo.errors import ModelError

_STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def build(num_classes: int = 10, width: float = 1.0) -> nn.Module:
    """Return the float network: ReLU6, identity shortcuts only where the shapes agree.

    ``width`` multiplies all channels but the last 1,280 (section 4); they are rounded to multiples of 8, by at most a
    tenth downwards. Raises ModelError for a width that is not positive, or beyond 4.
    """
    if not 0 < width <= 4:
        raise ModelError(f"mobilenetv2_cifar.width: must be positive and at most 4, got {width}")
    channels = _channels(32 * width)
    blocks: list[nn.Module] = [_unit(3, channels, 3, 1)]
    for expand, wide, count, stride in _STAGES:
        for i in range(count):
            blocks.append(InvertedResidual(channels, _channels(wide * width), stride if i == 0 else 1, expand))
            channels = _channels(wide * width)
    blocks += [_unit(channels, 1280, 1, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(1280, num_classes)]
    return nn.Sequential(*blocks)


def _channels(wanted: float) -> int:
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * wanted else nearest + 8


def _unit(i: int, o: int, kernel: int, stride: int, groups: int = 1, act: bool = True) -> nn.Sequential:
    layers = [nn.Conv2d(i, o, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
    return nn.Sequential(*layers, nn.ReLU6()) if act else nn.Sequential(*layers)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project; plus the input where stride and width allow."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expand: int) -> None:
        """Make the block with random weights."""
        super().__init__()
        hidden = channels_in * expand
        first = [_unit(channels_in, hidden, 1, 1)] if expand != 1 else []
        self.body = nn.Sequential(
            *first, _unit(hidden, hidden, 3, stride, hidden), _unit(hidden, channels_out, 1, 1, act=False)
        )
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = self.body(x)
        return x + y if self.residual else y  # type: ignore[no-any-return]
