"""MobileNetV1 (Howard et al. 2017), compatible with the Keras weights, and its CIFAR variant."""

from __future__ import annotations

from torch import nn

from zoo.errors import ModelError

_IMAGENET = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


def build(width: float = 1.0, num_classes: int = 1000, variant: str = "imagenet") -> nn.Module:
    """Return the float network.

    ``imagenet``: stem stride 2, TensorFlow SAME padding, ReLU6, BatchNorm epsilon 1e-3. ``cifar``: stem stride 1,
    symmetric padding, ReLU, epsilon 1e-5 (3,217,226 parameters at width 1 and 10 classes). Sizes must be even at
    every stride-2 layer. Raises ModelError for another variant, and for a width outside 1/32..4.
    """
    if not 1 / 32 <= width <= 4:
        raise ModelError(f"mobilenetv1.width: must lie in 1/32..4, got {width}")
    if variant not in ("imagenet", "cifar"):
        raise ModelError(f"mobilenetv1.variant: {variant!r} is unknown (imagenet, cifar)")
    keras = variant == "imagenet"
    channels = int(32 * width)
    layers: list[tuple[str, nn.Module]] = []

    def conv(name: str, i: int, o: int, kernel: int, stride: int, groups: int = 1) -> None:
        if keras and stride == 2:
            layers.append((f"{name}_pad", nn.ZeroPad2d((0, 1, 0, 1))))
        padding = 0 if kernel == 1 or (keras and stride == 2) else 1
        layers.append((name, nn.Conv2d(i, o, kernel, stride, padding, groups=groups, bias=False)))
        layers.append((f"{name}_bn", nn.BatchNorm2d(o, eps=1e-3 if keras else 1e-5)))
        layers.append((f"{name}_relu", nn.ReLU6() if keras else nn.ReLU()))

    conv("conv1", 3, channels, 3, 2 if keras else 1)
    for n, (wide, stride) in enumerate(_IMAGENET, 1):
        out = int(wide * width)
        conv(f"conv_dw_{n}", channels, channels, 3, stride, channels)
        conv(f"conv_pw_{n}", channels, out, 1, 1)
        channels = out
    layers += [("pool", nn.AdaptiveAvgPool2d(1)), ("flatten", nn.Flatten(1))]
    layers.append(("classifier", nn.Linear(channels, num_classes)))
    network = nn.Sequential()
    for name, layer in layers:
        network.add_module(name, layer)
    return network
