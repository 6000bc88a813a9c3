from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zoo.quant import ops

SHAPES = [(7,), (3, 5), (2, 3, 5, 7), (4, 1, 1, 1), (2, 8, 1, 1)]
LIMITS = [(-128, 127), (0, 255), (-8, 7), (-7, 7), (0, 15), (-2, 1), (0, 3), (-32768, 32767)]


@given(
    shape=st.sampled_from(SHAPES), limits=st.sampled_from(LIMITS), scale=st.floats(1e-4, 10.0), seed=st.integers(0, 99),
    offset=st.floats(0, 1), layout=st.booleans(),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_fake_quantize_is_dequantized_quantize(
    shape: tuple[int, ...], limits: tuple[int, int], scale: float, seed: int, offset: float, layout: bool
) -> None:
    torch.manual_seed(seed)
    x = torch.randn(shape) * scale * (limits[1] - limits[0])
    if layout and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    s, z = torch.tensor([scale]), torch.tensor([float(round(limits[0] + offset * (limits[1] - limits[0])))])
    q = ops.quantize(x, s, z, *limits)
    y = ops.fake_quantize(x, s, z, *limits)
    assert torch.equal(q, q.round()) and float(q.min()) >= limits[0] and float(q.max()) <= limits[1]
    assert torch.equal(y, ops.dequantize(q, s, z)) and y.stride() == x.stride()


@pytest.mark.parametrize("limits", LIMITS)
def test_fake_quantize_per_channel_is_dequantized_quantize(limits: tuple[int, int]) -> None:
    torch.manual_seed(0)
    w, s = torch.randn(6, 4, 3, 3), torch.rand(6) * 0.1 + 0.01
    z = torch.randint(limits[0] // 2, limits[1] // 2 + 1, (6,)).float()
    q = ops.quantize(w, s, z, *limits, axis=0)
    assert torch.equal(ops.fake_quantize(w, s, z, *limits, axis=0), ops.dequantize(q, s, z, axis=0))


@pytest.mark.parametrize("zero", [0.0, 3.0])
def test_it_equals_torchs_own_fake_quantization(zero: float) -> None:
    torch.manual_seed(0)
    x = torch.randn(5000) * 3
    ours = ops.fake_quantize(x, torch.tensor([0.11]), torch.tensor([zero]), -8, 7)
    assert torch.equal(ours, torch.fake_quantize_per_tensor_affine(x, 0.11, int(zero), -8, 7))


def _reference(x: Tensor, s: Tensor, z: float, qmin: int, qmax: int) -> Tensor:
    """LSQ by autograd alone (Esser et al. 2020, eq. 1-3): the rounding is a detached difference."""
    real = x / s
    clipped = real.clamp(qmin - z, qmax - z)
    return (clipped + (clipped.round() - clipped).detach()) * s


@pytest.mark.parametrize("shape", [(1000,), (3, 4, 9, 9)])
@pytest.mark.parametrize("limits", [(-8, 7), (0, 15)])
def test_gradients_are_those_of_lsq(shape: tuple[int, ...], limits: tuple[int, int]) -> None:
    torch.manual_seed(1)
    x = torch.randn(shape) * (limits[1] - limits[0]) * 0.2 * 0.4
    grad = torch.randn(shape)
    exact, exact_scale = x.double().requires_grad_(), torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    _reference(exact, exact_scale, 0.0, *limits).backward(grad.double())  # type: ignore[no-untyped-call]
    ours, scale = x.clone().requires_grad_(), torch.tensor([0.2], requires_grad=True)
    ops.LearnedScale.apply(ours, scale, torch.zeros(1), *limits, None, 1.0).backward(grad)
    assert ours.grad is not None and exact.grad is not None and scale.grad is not None and exact_scale.grad is not None
    assert torch.allclose(ours.grad, exact.grad.float(), atol=1e-6)
    assert torch.allclose(scale.grad.double(), exact_scale.grad, rtol=1e-3, atol=1e-2)


def test_per_channel_gradient_is_the_per_tensor_one_of_each_channel() -> None:
    torch.manual_seed(2)
    w, s, grad = torch.randn(3, 40), torch.tensor([0.1, 0.2, 0.4]), torch.randn(3, 40)
    together, scales = w.clone().requires_grad_(), s.clone().requires_grad_()
    ops.LearnedScale.apply(together, scales, torch.zeros(3), -8, 7, 0, 1.0).backward(grad)
    assert together.grad is not None and scales.grad is not None
    for i in range(3):
        alone, scale = w[i].clone().requires_grad_(), s[i : i + 1].clone().requires_grad_()
        ops.LearnedScale.apply(alone, scale, torch.zeros(1), -8, 7, None, 1.0).backward(grad[i])
        assert alone.grad is not None and scale.grad is not None
        assert torch.allclose(together.grad[i], alone.grad)
        assert torch.allclose(scales.grad[i], scale.grad[0], rtol=1e-4)


def test_bfloat16_stays_bfloat16() -> None:
    x = torch.randn(64).to(torch.bfloat16).requires_grad_()
    y = ops.LearnedScale.apply(x, torch.tensor([0.1], requires_grad=True), torch.zeros(1), -8, 7, None, 1.0)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
