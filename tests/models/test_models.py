from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo.errors import ModelError
from zoo.models import from_timm, mobilenetv1, mobilenetv2_cifar, resnet8, resnet_cifar, vgg9


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def statistics(net: nn.Module) -> int:
    """Keras counts the running mean and variance as (untrainable) parameters."""
    return sum(2 * m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))


def test_resnet8_has_the_published_size() -> None:
    net = resnet8.build()
    assert parameters(net) + statistics(net) == 78_666  # MLPerf Tiny (Banbury et al. 2021), Keras's count


def test_cifar_networks_have_the_published_sizes() -> None:
    assert parameters(vgg9.build()) == 14_029_706
    assert parameters(mobilenetv1.build(num_classes=10, variant="cifar")) == 3_217_226
    assert parameters(mobilenetv2_cifar.build()) == 2_236_682
    # the paper's networks have 269,722 and 853,018 with identity shortcuts; two projections come on top
    projections = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64
    assert parameters(resnet_cifar.build(20)) == 269_722 + projections
    assert parameters(resnet_cifar.build(56)) == 853_018 + projections
    with pytest.raises(ValueError, match="6 n"):
        resnet_cifar.build(18)


@pytest.mark.parametrize(
    ("width", "count"), [(1.0, 4_253_864), (0.75, 2_601_976), (0.5, 1_342_536), (0.25, 475_544)]
)  # fmt: skip
def test_mobilenetv1_has_the_size_of_the_keras_network(width: float, count: int) -> None:
    net = mobilenetv1.build(width)
    assert parameters(net) + statistics(net) == count


@pytest.mark.parametrize(("name", "count"), [("mobilenetv2_100", 3_504_872), ("tf_efficientnet_lite0", 4_652_008)])
def test_timm_networks_have_the_published_sizes(name: str, count: int) -> None:
    assert parameters(from_timm.build(name)) == count


@pytest.mark.parametrize(("width", "timm"), [(1.0, "100"), (0.75, "075"), (0.5, "050"), (0.35, "035")])
def test_mobilenetv2_for_cifar_has_the_size_of_timms(width: float, timm: str) -> None:
    ours = mobilenetv2_cifar.build(10, width)
    assert parameters(ours) == parameters(from_timm.build(f"mobilenetv2_{timm}", num_classes=10))


@pytest.mark.parametrize("width", [0, -1, 5])
def test_a_width_that_makes_no_network_is_refused(width: float) -> None:
    with pytest.raises(ModelError, match=r"mobilenetv2_cifar\.width: must be positive and at most 4"):
        mobilenetv2_cifar.build(10, width)
    with pytest.raises(ModelError, match=r"mobilenetv1\.width: must lie in 1/32\.\.4, got"):
        mobilenetv1.build(width)
    with pytest.raises(ValueError, match="width must be positive"):
        resnet_cifar.build(20, min(width, 0))


@pytest.mark.parametrize("width", [1.0, 0.75, 0.5, 0.25, 0.3])
def test_width_multiplier_rounds_down_as_keras_does(width: float) -> None:
    net = mobilenetv1.build(width, num_classes=7)
    base = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    full = [m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    assert full == [int(c * width) for c in base]
    depthwise = [m for m in net.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert [m.groups for m in depthwise] == full[:-1]
    assert net.classifier.in_features == full[-1]


@pytest.mark.parametrize(
    ("net", "image", "classes"),
    [
        (lambda: resnet8.build(10, 3), (3, 32, 32), 10),
        (lambda: resnet8.build(7, 1), (1, 28, 28), 7),
        (lambda: vgg9.build(5), (3, 32, 32), 5),
        (lambda: mobilenetv1.build(0.25, 11), (3, 64, 64), 11),
        (lambda: mobilenetv1.build(0.25, 10, "cifar"), (3, 32, 32), 10),
        (lambda: mobilenetv2_cifar.build(10), (3, 32, 32), 10),
        (lambda: resnet_cifar.build(8, 4, 6), (3, 32, 32), 6),
        (lambda: from_timm.build("mobilenetv2_100", pad_type="same", num_classes=3), (3, 64, 64), 3),
    ],
)
def test_output_is_one_logit_per_class(net, image: tuple[int, ...], classes: int) -> None:
    with torch.device("meta"), torch.no_grad():
        assert net().eval()(torch.empty(2, *image)).shape == (2, classes)


def tensorflow_same(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Padding before and after, as the notes on padding in TensorFlow's ``tf.nn`` state it."""
    total = max(kernel - stride, 0) if size % stride == 0 else max(kernel - size % stride, 0)
    return total // 2, total - total // 2


@pytest.mark.parametrize(
    ("net", "size"), [(lambda: resnet8.build(), 32), (lambda: resnet8.build(), 28), (lambda: mobilenetv1.build(), 224)]
)  # fmt: skip
def test_padding_is_that_of_tensorflow(net, size: int) -> None:
    """A pad module's work is added to the convolution that follows it; sizes are those before the pad."""
    found: list[tuple[nn.Conv2d, int, tuple[int, ...]]] = []
    before: list[tuple[tuple[int, ...], int]] = []

    def watch(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if isinstance(module, nn.ZeroPad2d):
            before.append((module.padding, args[0].shape[2]))
        elif isinstance(module, nn.Conv2d):
            pad, source = before.pop() if before else ((0, 0, 0, 0), args[0].shape[2])
            assert args[0].shape[2] == source + pad[2] + pad[3]
            found.append((module, source, tuple(p + module.padding[i < 2] for i, p in enumerate(pad))))

    with torch.device("meta"), torch.no_grad():
        network = net().eval()
        for module in network.modules():
            module.register_forward_pre_hook(watch)
        network(torch.empty(1, 3, size, size))
    assert len(found) == sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert {m.stride[0] for m, _, _ in found} == {1, 2}
    for conv, source, pad in found:
        first, last = tensorflow_same(source, conv.kernel_size[0], conv.stride[0])
        assert pad == (first, last, first, last)


def test_mobilenetv1_for_cifar_pads_both_sides_alike() -> None:
    net = mobilenetv1.build(0.25, 10, "cifar")
    assert not [m for m in net.modules() if isinstance(m, nn.ZeroPad2d)]
    assert {m.padding for m in net.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)} == {(1, 1)}


def test_shortcuts_are_identities_only_where_the_shapes_agree() -> None:
    blocks = [m for m in mobilenetv2_cifar.build().modules() if isinstance(m, mobilenetv2_cifar.InvertedResidual)]
    # stages of 1, 2, 3, 4, 3, 3, 1 blocks: every block but a stage's first adds its input
    assert [b.residual for b in blocks] == [i > 0 for n in (1, 2, 3, 4, 3, 3, 1) for i in range(n)]


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(ModelError, match=r"mobilenetv1\.variant: 'tiny' is unknown \(imagenet, cifar\)"):
        mobilenetv1.build(variant="tiny")


def test_unknown_timm_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"no model 'mobilenetv2_10'; did you mean 'mobilenetv2_100'"):
        from_timm.build("mobilenetv2_10")


@pytest.mark.parametrize("args", [{"bogus": 1}, {"pretrained": True}])
def test_timm_arguments_are_checked(args: dict[str, object]) -> None:
    with pytest.raises(ModelError, match=r"^model\.args.*" + next(iter(args))):
        from_timm.build("resnet18", **args)
