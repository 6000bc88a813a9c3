"""Depthwise convolutions by compiled kernels against PyTorch's in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.compiler import needs_compiler
from zoo.graph import ops
from zoo.native import library
from zoo.native.depthwise import depthwise, suits
from zoo.native.kernels import Kernels, kernels

pytestmark = needs_compiler
# images, channels, height, width, kernel, stride, padding: whole vectors of channels and a part of one, sums over more
# images and more rows than one float32 sum has, positions that the stride leaves out
SHAPES = [
    (2, 16, 8, 8, 3, 2, (1, 1)),
    (1, 5, 7, 9, 3, 1, (1, 1)),
    (19, 24, 6, 5, 3, 2, (0, 1)),
    (3, 40, 33, 18, 3, 2, (1, 1)),
    (9, 16, 11, 12, 5, 2, (2, 2)),
    (2, 3, 10, 9, 5, 3, (1, 4)),
    (4, 32, 2, 2, 3, 1, (1, 1)),
    (2, 17, 1, 1, 3, 2, (2, 1)),
]


def inputs(shape: tuple[int, int, int, int, int, int, tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    n, channels, height, width, kernel, _, _ = shape
    torch.manual_seed(0)
    x = torch.randn(n, channels, height, width).to(memory_format=torch.channels_last)
    return x, torch.randn(channels, 1, kernel, kernel), torch.randn(channels)


def learned(convolve: Callable[..., Tensor], x: Tensor, weight: Tensor, bias: Tensor) -> list[Tensor]:
    """Return the convolution and the gradients of image, weight and bias."""
    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = convolve(*leaves)
    y.backward(torch.linspace(-1.0, 1.0, y.numel()).reshape(y.shape).to(y.dtype))
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def native(shape: tuple[int, int, int, int, int, int, tuple[int, int]], by: Kernels) -> Callable[..., Tensor]:
    return lambda x, weight, bias: depthwise(by, x, weight, bias, *shape[-2:])


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_pytorchs(shape: tuple[int, int, int, int, int, int, tuple[int, int]]) -> None:
    x, weight, bias = inputs(shape)
    *_, stride, padding = shape
    found = learned(native(shape, kernels()), x, weight, bias)
    exact = learned(
        lambda *t: F.conv2d(*t, stride=stride, padding=padding, groups=len(weight)),
        x.double(), weight.double(), bias.double(),
    )  # fmt: skip
    assert len(found) == len(exact) == 4
    for one, expected in zip(found, exact, strict=True):
        assert one.shape == expected.shape
        assert torch.allclose(one.double(), expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("shape", SHAPES[:5])
def test_in_bfloat16_only_images_are_rounded(shape: tuple[int, int, int, int, int, int, tuple[int, int]]) -> None:
    x, weight, bias = inputs(shape)
    narrow = learned(native(shape, kernels()), x.bfloat16(), weight, bias)
    convolve = native(shape, kernels())
    wide = x.bfloat16().float().requires_grad_()
    y = convolve(wide, weight, bias)
    assert narrow[0].dtype == torch.bfloat16 and torch.equal(narrow[0], y.bfloat16())
    y.backward(torch.linspace(-1.0, 1.0, y.numel()).reshape(y.shape).bfloat16().float())
    assert wide.grad is not None and torch.equal(narrow[1], wide.grad.bfloat16())
    assert all(t.dtype == torch.float32 for t in narrow[2:])


def test_neither_threads_nor_vectors_change_a_bit() -> None:
    shape = (21, 40, 20, 19, 3, 2, (1, 1))
    before, found = torch.get_num_threads(), []
    try:
        for threads, by in ((1, kernels()), (3, kernels()), (2, Kernels(library.compile_kernels((("-O1",),))))):
            torch.set_num_threads(threads)
            found.append(learned(native(shape, by), *inputs(shape)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_what_the_kernels_do_not_know_is_left_to_pytorch() -> None:
    x, one = torch.randn(2, 8, 9, 9), (1, 1)
    weight = torch.randn(8, 1, 3, 3)
    assert suits(x, weight, (2, 2), one, one)
    assert not any([
        suits(x, torch.randn(16, 1, 3, 3), one, one, one),  # two filters a channel
        suits(x, torch.randn(8, 2, 3, 3), one, one, one),  # groups of two
        suits(x, torch.randn(8, 1, 7, 7), one, one, one),
        suits(x, torch.randn(8, 1, 3, 5), one, one, one),
        suits(x, weight, (1, 2), one, one),
        suits(x, weight, one, one, (2, 2)),
        suits(x, weight, one, (3, 1), one),
        suits(x, weight, one, "same", one),
        suits(x[..., :1, :1], weight, one, (0, 0), one),
        suits(x[:0], weight, one, one, one),
    ])  # fmt: skip


@pytest.mark.parametrize(("size", "stride", "slow"), [(9, 2, True), (2, 1, True), (9, 1, False)])
def test_under_autocast_they_compute_what_is_slow(size: int, stride: int, slow: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, size, size), torch.randn(8, 1, 3, 3), torch.randn(8)
    settings = (weight, bias, (stride, stride), (1, 1), (1, 1), 8)
    with torch.autocast("cpu", torch.bfloat16):
        found, plain = ops.conv2d(x, *settings, kernels()), ops.conv2d(x, *settings)
        # half precision has no kernels
        with torch.autocast("cpu", torch.float16):
            assert ops.conv2d(x, *settings, kernels()).dtype == torch.float16
    exact = depthwise(kernels(), x.bfloat16(), weight, bias, stride, (1, 1))
    assert found.dtype == torch.bfloat16 and torch.equal(found, exact if slow else plain)
    assert torch.allclose(found.float(), plain.float(), atol=0.05, rtol=0.02)
    assert torch.equal(ops.conv2d(x, *settings, kernels()), ops.conv2d(x, *settings))


def test_a_second_derivative_is_refused() -> None:
    x, weight, bias = inputs(SHAPES[0])
    y = depthwise(kernels(), x.requires_grad_(), weight, bias, 2, (1, 1))
    (first,) = torch.autograd.grad(y, x, torch.ones_like(y, requires_grad=True), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
