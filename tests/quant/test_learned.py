"""Gradients of the learned quantizers against autograd on the formulas of their publications, in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import QuantError
from zoo.quant import ops
from zoo.quant.learned._formula import formula
from zoo.quant.learned._range import LearnedRange
from zoo.quant.learned._sawb import Sawb, coefficients
from zoo.quant.learned.lsq import Lsq
from zoo.quant.learned.lsq_plus import LsqPlus
from zoo.quant.learned.pact import Pact
from zoo.quant.learned.tqt import Tqt
from zoo.quant.quantizer import Quantizer
from zoo.quant.spec import Format


def quantizer(symmetric: bool = True, signed: bool = False, bits: int = 4, channels: int = 0) -> Quantizer:
    granularity = "per_channel" if channels else "per_tensor"
    made = Quantizer(Format(bits, symmetric, granularity), signed=signed, channels=channels)  # type: ignore[arg-type]
    made.set_range(torch.full((max(1, channels),), -0.7), torch.full((max(1, channels),), 1.3))
    return made


def data(*shape: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(*shape), torch.randn(*shape)


def through(x: Tensor) -> Tensor:
    """Round straight-through."""
    return x + (x.round() - x).detach()


def test_lsq_plus_learns_scale_and_offset_as_published() -> None:
    q = quantizer(symmetric=False)
    x, grad = data(2, 300)
    learner = LsqPlus(q, weight=False, relative=False)
    assert learner.offset is not None
    y = learner(x, q)
    assert torch.equal(y, q(x))
    y.backward(grad)
    s = q.scale.detach().double().requires_grad_()
    beta = (-q.zero_point * q.scale.detach()).double().requires_grad_()
    # eq. 5-7 with codes that start at qmin
    inside = (x.double() - beta) / s
    clipped = inside.clamp(q.qmin, q.qmax)
    (through(clipped) * s + beta).backward(grad.double())
    gain = 1.0 / math.sqrt(300 * q.qmax)
    assert torch.allclose(learner.value.grad.double(), s.grad * gain, rtol=1e-3, atol=1e-4)
    assert torch.allclose(learner.offset.grad.double(), beta.grad * gain, rtol=1e-3, atol=1e-4)


def test_adam_moves_the_offset_of_lsq_plus_by_a_share_of_the_range() -> None:
    q = quantizer(symmetric=False)
    learner = LsqPlus(q, weight=False, relative=True)
    assert learner.offset is not None and torch.equal(learner.zero_point(q), q.zero_point)
    optimizer = torch.optim.Adam([learner.offset], lr=1e-3)
    before = float((learner.offset * learner.offset_unit).detach())
    # all of it above the range
    learner(torch.full((64,), 9.0), q).backward(torch.full((64,), -1.0))
    optimizer.step()
    moved = float((learner.offset * learner.offset_unit).detach()) - before
    assert moved == pytest.approx(1e-3 * float(q.scale.detach()) * (q.qmax - q.qmin), rel=1e-3)


@pytest.mark.parametrize("end", [0, 15])
def test_an_offset_of_lsq_plus_at_an_end_of_the_codes_is_learned_and_stays_within_them(end: int) -> None:
    q = quantizer(symmetric=False)
    q.set_qparams(q.scale.detach(), torch.tensor([float(end)]))
    learner = LsqPlus(q, weight=False, relative=False)
    assert learner.offset is not None and float(learner.zero_point(q).detach()) == end
    step = float(q.scale.detach())
    x = torch.tensor([[-99.0, 99.0]])  # all outside: eq. 7 gives the sum of their gradients
    learner(x, q).backward(torch.tensor([[2.0, 3.0]]))
    assert float(learner.offset.grad) == pytest.approx(5.0 / math.sqrt(2 * q.qmax), rel=1e-5)
    for outward, inward in ((1e3, 0.6), (-1e3, 0.6)):
        with torch.no_grad():
            learner.offset.add_(outward)
        learner.limit()
        kept = 0 if outward > 0 else 15
        assert float(learner.zero_point(q).detach()) == kept
        with torch.no_grad():
            learner.offset.add_(-math.copysign(inward * step, outward))
        assert float(learner.zero_point(q).detach()) == abs(kept - 1)


@pytest.mark.parametrize("bits", [5, 8])
def test_the_largest_weight_of_pact_is_learned_whatever_its_sign(bits: int) -> None:
    q = quantizer(signed=True, bits=bits, channels=1000)
    weight = data(1000, 9)[0].requires_grad_()
    with torch.no_grad():
        weight[:, 0] = torch.linspace(5.0, 9.0, 1000) * torch.tensor([1.0, -1.0]).repeat(500)
    Sawb(q)(weight, q).backward(torch.ones(1000, 9))
    assert torch.equal(weight.grad, torch.ones(1000, 9))


def test_pact_moves_alpha_by_what_is_clipped() -> None:
    q = quantizer()
    x, grad = data(500)
    learner = Pact.make(q, weight=False, relative=False)
    alpha = float(q.scale.detach()) * q.qmax
    assert float(learner.value.detach()) == pytest.approx(alpha)
    learner(x, q).backward(grad)
    assert float(learner.value.grad) == pytest.approx(float(grad[x >= alpha].sum()), rel=1e-4)


@pytest.mark.parametrize("relative", [False, True])
def test_relative_units_change_the_unit_only(relative: bool) -> None:
    q = quantizer()
    x, grad = data(500)
    learner = Lsq(q, weight=False, relative=relative)
    assert torch.equal(learner(x, q), q(x))
    learner(x, q).backward(grad)
    q.scale.requires_grad_()
    q(x).backward(grad)
    unit = q.scale.detach() if relative else 1.0
    assert torch.allclose(learner.value.grad, q.scale.grad * unit, rtol=1e-5)


def test_tqt_follows_the_normalised_gradient_of_log2_t() -> None:
    q = quantizer()
    x, grad = data(500)
    learner = Tqt(q, weight=False, relative=False)
    threshold = learner.value.detach().double().requires_grad_()
    s = torch.exp2(threshold) / q.qmax
    (through((x.double() / s).clamp(q.qmin, q.qmax)) * s).backward(grad.double())
    learner(x, q).backward(grad)
    # the first running mean square is the gradient's own square
    wanted = torch.tanh(threshold.grad / (threshold.grad.abs() + 1e-5))
    assert torch.allclose(learner.value.grad.double(), wanted, rtol=1e-4)


def test_tqt_keeps_power_of_two_scales() -> None:
    q = Quantizer(Format(4, scale="pow2"), signed=True)
    q.set_range(torch.tensor([-1.0]), torch.tensor([0.9]))
    learner = Tqt(q, weight=True, relative=False)
    assert torch.equal(learner.scale().detach(), q.scale.detach())
    with torch.no_grad():
        learner.value += 0.3
    learner.settle(q)
    exponent = float(torch.log2(q.scale.detach()))
    assert exponent == round(exponent)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("narrow", [False, True])
def test_sawb_is_near_the_least_error_of_its_codes(bits: int, narrow: bool) -> None:
    torch.manual_seed(0)
    rows = torch.stack([torch.randn(20_000), torch.rand(20_000) * 2 - 1, torch.randn(20_000) * torch.rand(20_000)])
    q = Quantizer(Format(bits, symmetric=True, granularity="per_channel", narrow=narrow), signed=True, channels=3)
    q.set_range(rows.amin(1), rows.amax(1))
    learner = Sawb(q)
    error = (learner(rows, q) - rows).square().mean(1)
    largest = rows.abs().amax(1) / q.qmax
    tried = [torch.round(rows / s[:, None]).clamp(q.qmin, q.qmax) * s[:, None] for s in
             (largest * share for share in torch.linspace(0.1, 2.0, 200))]  # fmt: skip
    least = torch.stack([(values - rows).square().mean(1) for values in tried]).amin(0)
    # at 8 bits the largest weight is the range, which a tail makes dearer
    assert bool((error <= least * (1.1 if bits < 8 else 2.0)).all())


def test_sawb_on_evenly_spread_levels_is_the_published_one() -> None:
    # levels at odd multiples of half a step are two's complement codes of a weight moved by half a step: then the
    # publication's 2-bit coefficients, 3.2 and 2.1 times alpha = 1.5 steps, come out of the same fit
    c1, c2 = coefficients(-2, 1, offset=0.5)
    assert (1.5 * c1, 1.5 * c2) == pytest.approx((3.2, 2.1), rel=0.05)


def test_sawb_keeps_a_range_where_all_weights_are_equal_or_zero() -> None:
    q = quantizer(signed=True, bits=4, channels=2)
    learner = Sawb(q)
    before = q.scale.detach().clone()
    out = learner(torch.tensor([[0.5, -0.5, 0.5, -0.5], [0.0, 0.0, 0.0, 0.0]]), q)
    assert out[0] == pytest.approx([0.5, -0.5, 0.5, -0.5], abs=0.07)
    assert torch.equal(out[1], torch.zeros(4)) and learner.scale()[1] == before[1]
    with pytest.raises(QuantError, match="symmetric"):
        Sawb(Quantizer(Format(4, symmetric=False), signed=True))


@pytest.mark.parametrize("kind", [Lsq, LsqPlus, Tqt])
def test_a_negative_sign_negates_scale_and_keeps_codes_in_range(kind: type[Lsq]) -> None:
    q = quantizer(signed=True, bits=3, channels=4)
    w, grad = data(4, 60)
    learner = kind(q, weight=True, relative=False)
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0])
    flipped = w * sign[:, None]
    assert torch.equal(learner(w, q, sign), learner(flipped, q) * sign[:, None])
    leaf, mirror = w.clone().requires_grad_(), flipped.clone().requires_grad_()
    learner(leaf, q, sign).backward(grad)
    first = learner.value.grad.clone()
    learner.value.grad = None
    if kind is Tqt:
        learner = kind(q, weight=True, relative=False)
    learner(mirror, q).backward(grad * sign[:, None])
    assert torch.allclose(learner.value.grad, first, rtol=1e-4, atol=1e-6)
    assert torch.equal(leaf.grad, mirror.grad * sign[:, None])


def test_a_range_stays_positive_and_settles_into_the_quantizer() -> None:
    q = quantizer()
    before = float(q.scale.detach())
    learner = Lsq(q, weight=False, relative=True)
    with torch.no_grad():
        learner.value.fill_(-5.0)
    learner.limit()
    learner.settle(q)
    assert float(q.scale.detach()) == pytest.approx(before * 1e-3)


@pytest.mark.parametrize("kind", [Lsq, LsqPlus, Pact, Tqt])
@pytest.mark.parametrize("shape", [(64, 8), (4, 8, 6, 6)])
def test_batchnorm_and_range_in_one_are_the_two_in_turn(kind: type[Lsq], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    u, grad = torch.randn(shape), torch.randn(shape)
    if len(shape) == 4:
        u = u.contiguous(memory_format=torch.channels_last)
    q = quantizer(symmetric=kind is not LsqPlus)
    found = []
    for fused in (False, True):
        norm = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(8)
        nn.init.uniform_(norm.weight, -1.5, 1.5, torch.Generator().manual_seed(1))
        learner, leaf = kind(q, weight=False, relative=False), u.clone().requires_grad_()
        y = learner.normed(leaf, norm, q) if fused else learner(norm(leaf), q)
        assert y is not None
        y.backward(grad)
        grads = [leaf.grad, *(p.grad for p in (*norm.parameters(), *learner.parameters()))]
        found.append([y.detach(), *grads, norm.running_mean, norm.running_var, norm.num_batches_tracked])
    for two, one in zip(*found, strict=True):
        assert torch.allclose(one, two, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rounding", [True, False])
@pytest.mark.parametrize("axis", [None, 0])
def test_what_a_compiler_gets_equals_the_operation(axis: int | None, rounding: bool) -> None:
    x, grad = data(4, 300)
    scale = torch.tensor([0.11, -0.07, 0.3, 0.013]) if axis == 0 else torch.tensor([0.11])
    zero = torch.zeros(len(scale)) if axis == 0 else torch.tensor([5.0])
    limits = (-8, 7) if axis == 0 else (0, 15)
    x[:, 0] = scale * 7  # on the upper end, or inside
    found = []
    for function in (LearnedRange.apply, formula):
        leaf, s, z = x.clone().requires_grad_(), scale.clone().requires_grad_(), zero.clone()
        z.requires_grad_(axis is None)
        y = function(leaf, s, z, *limits, axis, 0.5, rounding)
        y.backward(grad)
        found.append((y.detach(), leaf.grad, s.grad, z.grad))
    one, other = found
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[0], ops.fake_quantize(x, scale, zero, *limits, axis))
    assert torch.equal(one[1] == 0, other[1] == 0)
    assert torch.allclose(one[1], other[1], rtol=1e-6)
    assert torch.allclose(one[2], other[2], rtol=1e-4, atol=1e-3)
    assert (one[3] is None) == (other[3] is None) == (axis == 0)
    assert one[3] is None or torch.allclose(one[3], other[3], rtol=1e-3)
    assert formula(x.bfloat16(), scale, zero, *limits, axis, 0.5, rounding).dtype == torch.bfloat16
