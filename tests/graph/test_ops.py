"""The convolution of our graphs is torch's, whatever it is computed in."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from zoo.graph import ops


@pytest.mark.parametrize(("channels", "groups", "size", "stride"), [
    (8, 1, 9, 2), (8, 8, 9, 1), (8, 8, 9, 2), (8, 2, 9, 2), (8, 8, 2, 1),
])  # fmt: skip
@pytest.mark.parametrize("bias", [True, False])
def test_under_autocast_it_is_torchs_to_bfloat16s_digits(
    channels: int, groups: int, size: int, stride: int, bias: bool
) -> None:
    torch.manual_seed(0)
    conv = ops.Conv2d(channels, 8, (3, 3), stride=(stride, stride), pad=(1, 1, 1, 1), groups=groups, bias=bias)
    x = torch.randn(2, channels, size, size, requires_grad=True)
    wanted = F.conv2d(x, conv.weight, conv.bias, stride, 1, 1, groups)
    assert torch.equal(conv(x), wanted)
    (exact,) = torch.autograd.grad(wanted.sum(), x)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x.bfloat16().float())
    assert y.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(y.float().sum(), x)
    assert torch.allclose(y.float(), wanted, atol=0.05, rtol=0.02)
    assert torch.allclose(gradient, exact, atol=0.05, rtol=0.02)


@pytest.mark.parametrize(("size", "stride", "widened"), [(9, 2, True), (2, 1, True), (9, 1, False)])
def test_only_slow_shapes_are_computed_in_float32(size: int, stride: int, widened: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 8, size, size), torch.randn(8, 1, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = ops.conv2d(x, weight, None, (stride, stride), (1, 1), (1, 1), 8)
    exact = F.conv2d(x, weight, None, stride, 1, 1, 8).bfloat16()
    assert torch.equal(y, exact) is widened
