"""Networks that a user may bring, each with something that the shipped ones do not have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from tests.networks import images
from zoo.artifact.checkpoint import Network
from zoo.errors import DataError


@torch.no_grad()
def error(made: Network, net: nn.Module) -> float:
    """Return the distance of the integer network's logits to the float ones, as a share of these."""
    x = images(32)
    return float((made(x) - net(x)).norm() / net(x).norm())


class Named(nn.Module):
    """Its last layer bears the name of the graph's output node."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.hidden, self.output = nn.Conv2d(3, 8, 3), nn.Linear(8, 10), nn.Linear(10, classes)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.output(torch.relu(self.hidden(torch.relu(self.conv(x)).mean((2, 3)))))
        return y


@pytest.mark.parametrize("classes", [7, 10])
def test_a_layer_called_output_follows_no_other(classes: int) -> None:
    net = Named(classes).eval()
    steps = ["fold_batchnorm", "quantize", "equalize_activations", "calibrate", "integerize"]
    assert error(zoo.quantize(net, {"quant": {}, "steps": steps}, [images(128)]), net) < 0.02


def dead_channel(norm: bool) -> nn.Sequential:
    """Return a network whose fourth logit is the constant that a channel of zero weights gives."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(8) if norm else nn.Identity() for _ in range(2)]
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=not norm), norms[0], nn.ReLU(), nn.Conv2d(8, 8, 3, bias=not norm), norms[1], nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8),
    )  # fmt: skip
    with torch.no_grad():
        first, conv, last = (m for m in net if hasattr(m, "weight") and not isinstance(m, nn.BatchNorm2d))
        conv.weight[3] = 0.0
        (norms[1] if norm else conv).bias[3] = 0.5
        if not norm:
            # large steps of the second layer's input
            first.weight *= 30
            first.bias *= 30
            conv.weight /= 30
        last.weight.copy_(torch.eye(8))
        last.bias.zero_()
        if norm:
            net.train()
            for _ in range(200):
                net(images(16))
    return net.eval()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("norm", [True, False])
@torch.no_grad()
def test_a_channel_of_zero_weights_keeps_its_constant(bits: int, norm: bool) -> None:
    net = dead_channel(norm)
    eight: dict[str, Any] = {"bits": 8, "granularity": "per_channel"}
    quant = {"weight": eight | {"bits": bits}, "act": {"bits": bits, "symmetric": False},
             "overrides": [{"match": ":last", "weight": eight}]}  # fmt: skip
    first: Any = {"quantize": {"batchnorm": "merge"}} if norm else "quantize"
    made = zoo.quantize(
        net, {"steps": [first, {"calibrate": {"act": "minmax"}}, "integerize"], "quant": quant}, [images()]
    )
    x = images(8)
    wanted, found = net(x)[:, 3], made(x)[:, 3]
    assert float(wanted.amin()) == pytest.approx(0.5, abs=1e-4) == float(wanted.amax())
    # the constant is a code of the activation, half a step away at most, and the pool's another half
    node = made.program.node("3")
    assert node.out is not None
    assert float((found - wanted).abs().max()) <= 1.05 * node.out.scale


@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
@torch.no_grad()
def test_a_channel_of_zero_weights_keeps_scales_that_are_powers_of_two(granularity: str) -> None:
    """Its scale is raised so that its bias fits int32, to a power of two: hardware for such formats only shifts."""
    net = dead_channel(False)
    if granularity == "per_tensor":
        net[3].weight.zero_()
    weight = {"bits": 8, "granularity": granularity, "scale": "pow2"}
    quant = {"weight": weight, "act": {"bits": 8, "symmetric": False, "scale": "pow2"}}
    made = zoo.quantize(net, {"steps": ["quantize", {"calibrate": {"act": "minmax"}}, "integerize"], "quant": quant},
                        [images()])  # fmt: skip
    scale, bias = made.program.tensors["3.weight_scale"], made.program.tensors["3.bias"]
    assert bool((torch.frexp(scale).mantissa == 0.5).all())
    # the smallest such power: with half of it the bias would pass 2^29
    largest = int(bias[3].abs() if granularity == "per_channel" else bias.abs().amax())
    assert 2**28 * 0.999 < largest <= 2**29
    x = images(8)
    node = made.program.node("3")
    assert node.out is not None
    assert float((made(x)[:, 3] - net(x)[:, 3]).abs().max()) <= 1.05 * node.out.scale


@torch.no_grad()
def test_one_dead_channel_costs_the_others_no_precision() -> None:
    net = dead_channel(False)
    conv = net[3]
    conv.weight *= 0.03
    conv.bias *= 1e-3
    quant = {"act": {"bits": 16, "symmetric": False}}
    steps = ["quantize", "calibrate", {"integerize": {"semantics": "floor"}}]
    assert error(zoo.quantize(net, {"steps": steps, "quant": quant}, [images(128)]), net) < 0.01


@pytest.mark.parametrize("scale", ["float", "pow2"])
def test_equalized_channels_keep_the_clamp_of_relu6(scale: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU6(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()  # fmt: skip
    with torch.no_grad():
        net[0].weight.mul_(8)
        net[0].bias[:2] += 8
    quant = {"act": {"bits": 8, "symmetric": False, "scale": scale}}
    steps = ["quantize", "equalize_activations", {"calibrate": {"act": "minmax"}}, "integerize"]
    assert error(zoo.quantize(net, {"steps": steps, "quant": quant}, [images(128)]), net) < 0.04


def test_fewer_images_than_calibration_takes_are_not_mended_by_asking_for_fewer() -> None:
    recipe = {"quant": {}, "steps": ["fold_batchnorm", "quantize", "calibrate", "integerize"]}
    with pytest.raises(DataError) as caught:
        zoo.quantize(Named(3), recipe, [images(8)])
    assert str(caught.value) == "calibrate: 8 calibration images, 16 needed; give more images"
