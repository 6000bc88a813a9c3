"""CIFAR ResNets of 6 n + 2 layers (He et al. 2016, section 4.2), with projection shortcuts (option B)."""

from __future__ import annotations

from torch import Tensor, nn


def build(depth: int = 20, width: int = 16, num_classes: int = 10) -> nn.Module:
    """Return the float network; ``width`` is the first stage's, 16 in the paper. ValueError for others.

    It takes ``[N, 3, H, W]``. With width 16 and 10 classes ResNet-20 has 272,474 parameters and ResNet-56 855,770; the
    paper's 0.27 M and 0.85 M (table 6) are without the 2,752 of the two projections.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth must be 6 n + 2, got {depth}")
    if width < 1:
        raise ValueError(f"width must be positive, got {width}")
    return ResNetCifar((depth - 2) // 6, width, num_classes)


class ResNetCifar(nn.Module):
    """A stem, three stages of ``blocks`` residual blocks, global average pool, classifier."""

    def __init__(self, blocks: int, width: int, num_classes: int) -> None:
        """Make the network with random weights."""
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        stages: list[nn.Module] = []
        before = width
        for stage in range(3):
            channels = width << stage
            for block in range(blocks):
                stages.append(Block(before, channels, 2 if stage and not block else 1))
                before = channels
        self.blocks = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.fc = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits ``[N, num_classes]``."""
        x = self.blocks(self.relu(self.bn(self.conv(x))))
        return self.fc(self.flatten(self.pool(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Two 3x3 convolutions with BatchNorm; a 1x1 convolution with BatchNorm beside them where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        """Make the block."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        same = stride == 1 and channels_in == channels_out
        self.shortcut: nn.Module = nn.Identity()
        if not same:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False), nn.BatchNorm2d(channels_out)
            )
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return ``[N, channels_out, H / stride, W / stride]``."""
        y = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(y)) + self.shortcut(x))  # type: ignore[no-any-return]
