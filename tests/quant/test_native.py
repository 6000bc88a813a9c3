"""The compiled kernels against PyTorch's operations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.compiler import needs_compiler
from zoo.native import library
from zoo.native.kernels import Kernels, kernels
from zoo.quant import ops
from zoo.quant.learned._formula import formula
from zoo.quant.learned._native import suits
from zoo.quant.learned._normed import fits
from zoo.quant.learned._range import learned_range
from zoo.quant.learned.lsq import Lsq
from zoo.quant.learned.lsq_plus import LsqPlus
from zoo.quant.learned.pact import Pact
from zoo.quant.learned.tqt import Tqt
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format

pytestmark = needs_compiler
RANGES = {
    "one": ([0.11], [5.0], (0, 15), None),
    "one signed": ([0.11], [0.0], (-8, 7), None),
    "rows": ([0.11, -0.07, 0.3, 0.013], [0.0] * 4, (-8, 7), 0),
}


def ranged(x: Tensor, grad: Tensor, name: str, rounding: bool, native: Kernels | None) -> list[Tensor]:
    """Return y and the gradients of x, scale and zero point."""
    scale, zero, limits, axis = RANGES[name]
    leaf, s, z = x.clone().requires_grad_(), torch.tensor(scale).requires_grad_(), torch.tensor(zero)
    z.requires_grad_(axis is None)
    y = learned_range(leaf, s, z, *limits, axis, 0.5, rounding, native)
    y.backward(grad)
    return [y.detach(), *(t.grad for t in (leaf, s, z) if t.grad is not None)]


def normed(u: Tensor, grad: Tensor, q: Quantizer, kind: type[Lsq], native: Kernels | None) -> list[Tensor]:
    """Return y, the gradients of u, BatchNorm and range, and the running statistics."""
    channels = u.shape[1]
    norm = (nn.BatchNorm2d if u.dim() == 4 else nn.BatchNorm1d)(channels)
    nn.init.uniform_(norm.weight, -1.5, 1.5, torch.Generator().manual_seed(1))
    nn.init.uniform_(norm.bias, -0.5, 0.5, torch.Generator().manual_seed(2))
    learner, leaf = kind(q, weight=False, relative=False), u.clone().requires_grad_()
    learner.kernels = native
    y = learner.normed(leaf, norm, q)
    assert y is not None and norm.num_batches_tracked == 1
    y.backward(grad)
    grads = [p.grad for p in (leaf, *norm.parameters(), *learner.parameters())]
    assert norm.running_mean is not None and norm.running_var is not None
    return [y.detach(), *(g for g in grads if g is not None), norm.running_mean, norm.running_var]


def quantizer(symmetric: bool = True) -> Quantizer:
    made = Quantizer(Format(4, symmetric), signed=not symmetric)
    made.set_range(torch.tensor([-0.7]), torch.tensor([1.3]))
    return made


def images(*shape: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    u, grad = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    if len(shape) == 4:
        return u.contiguous(memory_format=torch.channels_last), grad
    return u, grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", RANGES)
def test_a_range_is_quantized_to_the_bits_of_fake_quantize_in_float32(name: str, dtype: torch.dtype) -> None:
    scale, zero, limits, axis = RANGES[name]
    x = (torch.randn(4, 70_001) * 0.5).to(dtype)
    s, z = torch.tensor(scale), torch.tensor(zero)
    x[:, :16] = ((torch.arange(16) + limits[0] - z[:1]) * s[:, None]).to(dtype)  # on the grid, both ends too
    x[:, 16:31] = ((torch.arange(15) + 0.5 + limits[0] - z[:1]) * s[:, None]).to(dtype)  # and between two codes
    x[0, 31:34] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    y = kernels().range_forward(x, s, *(float(limit - z[0]) for limit in limits))
    expected = ops.fake_quantize(x.float(), s, z, *limits, axis).to(dtype)
    assert torch.equal(y.isnan(), x.isnan()) and int(x.isnan().sum()) == 1
    assert torch.equal(y.nan_to_num(), expected.nan_to_num())


@pytest.mark.parametrize("rounding", [True, False])
@pytest.mark.parametrize("name", RANGES)
def test_gradients_of_a_range_are_those_of_its_formula(name: str, rounding: bool) -> None:
    scale, zero, limits, axis = RANGES[name]
    x, grad = images(4, 5000)
    # codes of the grid: those on an end are clipped
    x[:, :16] = (torch.arange(16) + limits[0] - torch.tensor(zero)[:1]) * torch.tensor(scale)[:, None]
    leaf, s = x.clone().requires_grad_(), torch.tensor(scale).requires_grad_()
    z = torch.tensor(zero).requires_grad_(axis is None)
    y = formula(leaf, s, z, *limits, axis, 0.5, rounding)
    y.backward(grad)
    assert leaf.grad is not None and 0 < int((leaf.grad == 0).sum()) < x.numel()
    found = ranged(x, grad, name, rounding, kernels())
    assert torch.equal(found[0], y)
    assert torch.equal(found[1] == 0, leaf.grad == 0) and torch.allclose(found[1], leaf.grad, rtol=1e-6)
    rest = [t.grad for t in (s, z) if t.grad is not None]
    assert len(rest) == (2 if axis is None else 1)
    for one, expected in zip(found[2:], rest, strict=True):
        assert torch.allclose(one, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [Lsq, LsqPlus, Pact, Tqt])
@pytest.mark.parametrize("shape", [(64, 8), (33, 7), (4, 8, 6, 6), (5, 24, 7, 9), (2, 200, 3, 3)])
def test_batchnorm_and_range_are_those_of_pytorch(kind: type[Lsq], shape: tuple[int, ...]) -> None:
    u, grad = images(*shape)
    q = quantizer(symmetric=kind is not LsqPlus)
    for one, two in zip(normed(u, grad, q, kind, kernels()), normed(u, grad, q, kind, None), strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4)


def test_batchnorm_of_a_mean_far_from_zero_keeps_its_digits() -> None:
    u, grad = images(16, 8, 12, 12)
    far = u + 300.0
    *_, mean, variance = normed(far, grad, quantizer(), Lsq, kernels())
    exact = far.double().transpose(0, 1).flatten(1)
    assert torch.allclose(mean.double(), 0.1 * exact.mean(1), rtol=1e-6)
    assert torch.allclose(variance.double(), 0.9 + 0.1 * exact.var(1), rtol=1e-5)


def test_sums_in_bfloat16_are_those_of_the_widened_values() -> None:
    u, grad = images(16, 8, 12, 12, dtype=torch.bfloat16)
    q = quantizer()
    y, grad_u, *short = normed(u, grad, q, Lsq, kernels())
    wide_y, wide_grad_u, *wide = normed(u.float(), grad.float(), q, Lsq, kernels())
    assert y.dtype == grad_u.dtype == torch.bfloat16
    assert torch.equal(y, wide_y.bfloat16()) and torch.equal(grad_u, wide_grad_u.bfloat16())
    assert all(torch.equal(a, b) for a, b in zip(short, wide, strict=True))


@pytest.mark.parametrize("make", [
    lambda threads: torch.set_num_threads(threads),
    lambda number: None if number == 1 else Kernels(library.compile_kernels((("-O1",),))),
], ids=["threads", "compiler flags"])  # fmt: skip
def test_neither_threads_nor_vectors_change_a_bit(make: Any) -> None:
    u, grad = images(32, 24, 17, 16)
    before = torch.get_num_threads()
    found = []
    try:
        for number in (1, 3):
            native = make(number) or kernels()
            found.append([*normed(u, grad, quantizer(), Lsq, native), *ranged(u, grad, "one", True, native)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_the_kernels_do_not_know_is_left_to_pytorch() -> None:
    x, _ = images(4, 50)
    scale, zero = torch.full((4,), 0.1), torch.tensor([3.0, 1.0, 0.0, 2.0])
    found = [
        learned_range(x.requires_grad_(), scale, zero, 0, 15, 0, 1.0, True, native) for native in (None, kernels())
    ]
    assert torch.equal(*found)
    assert Kernels.suit(x) and Kernels.suit(x.bfloat16(), scale)
    assert not any(map(Kernels.suit, (x.double(), x[:0])))
    one = torch.ones(1)
    assert suits(x, one, one, None) and not any(suits(t, one, one, None) for t in (x.T, x[:1].expand(4, 50)))
    assert fits(x, nn.BatchNorm1d(50)) and not fits(x.T, nn.BatchNorm1d(4))
    assert not fits(x[:1].expand(4, 50), nn.BatchNorm1d(50))
    assert not Kernels.suit(x, scale.bfloat16())


def test_one_value_per_channel_is_refused_as_by_pytorch() -> None:
    learner = Lsq(quantizer(), weight=False, relative=False)
    learner.kernels = kernels()
    assert learner.normed(torch.randn(1, 8), nn.BatchNorm1d(8), quantizer()) is None


def test_copies_share_what_was_compiled() -> None:
    assert copy.deepcopy(kernels()) is kernels()


def test_a_second_derivative_is_refused() -> None:
    x, grad = images(4, 50)
    y = learned_range(x.requires_grad_(), torch.tensor([0.1]), torch.zeros(1), 0, 15, None, 1.0, True, kernels())
    (first,) = torch.autograd.grad(y, x, grad.requires_grad_(), create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
