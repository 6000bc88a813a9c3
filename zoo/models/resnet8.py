"""MLPerf Tiny ResNet8 (Banbury et al. 2021): 78,666 parameters, TensorFlow SAME padding."""

from __future__ import annotations

from torch import Tensor, nn

_EPS = 1e-3


def build(num_classes: int = 10, in_channels: int = 3) -> nn.Module:
    """Return the float network; it takes ``[N, in_channels, H, W]`` with H and W divisible by 4."""
    return ResNet8(num_classes, in_channels)


class ResNet8(nn.Module):
    """A stem and three residual blocks of 16, 32 and 64 channels, global average pool, classifier."""

    def __init__(self, num_classes: int, in_channels: int) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16, eps=_EPS)
        self.relu = nn.ReLU()
        self.block1 = Block(16, 16, 1)
        self.block2 = Block(16, 32, 2)
        self.block3 = Block(32, 64, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, num_classes]``."""
        x = self.relu(self.bn(self.conv(x)))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution with bias and without BatchNorm where the stride is 2."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        """Make the block; a stride of 2 pads right and bottom only, as TensorFlow does for even sizes."""
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride)
        self.bn1 = nn.BatchNorm2d(channels_out, eps=_EPS)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(channels_out, eps=_EPS)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1, stride=stride) if stride == 2 else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, channels_out, H / stride, W / stride]``."""
        y = self.relu1(self.bn1(self.conv1(self.pad(x))))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))  # type: ignore[no-any-return]
