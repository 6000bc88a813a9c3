"""Every fast path equals the rule of its semantics, on random accumulators and where rounding is hardest."""

from __future__ import annotations

import random
from collections.abc import Callable
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.integer import by_the_book as book
from zoo.errors import QuantError
from zoo.integer.semantics import float32, tflite
from zoo.integer.semantics import floor as floor_
from zoo.integer.semantics._fixed_point import (
    DoubleRounding,
    FloorShift,
    SingleRounding,
    quantize_multiplier,
    rounding_divide_by_power_of_two,
    saturating_rounding_doubling_high_mul,
)

SEMANTICS = {"tflite": tflite, "float32": float32, "floor": floor_}
BITS = (2, 3, 4, 5, 6, 7, 8, 16)
scales = st.floats(2.0**-12, 1.0, width=32)
int32s = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), 2**31 - 1, 0, -1, 2**30, -(2**30)])
Rule = Callable[[int, int], int]


def limits(bits: int, kind: str) -> tuple[int, int]:
    """Return the clamp of centred codes: signed, unsigned with zero point 0 (a ReLU), or a zero point inside."""
    return {
        "signed": (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1),
        "relu": (0, 2**bits - 1),
        "affine": (-(2**bits // 3), 2**bits - 1 - 2**bits // 3),
    }[kind]


def rule(name: str, scale_in: float, weights: list[float], scale_y: float, wide: bool) -> Rule:
    """Return ``(accumulator, channel) -> unclamped code`` by the book."""
    reals = [scale_in * w / scale_y for w in weights]
    if name == "tflite":
        pairs = [book.quantize_multiplier(r) for r in reals]
        step = book.single_rounding if wide else book.double_rounding
        return lambda x, c: step(x, *pairs[c])
    if name == "floor":
        reals = [w * scale_in / scale_y for w in weights]
        multipliers, shift = book.floor_constants(reals, 15 if wide else 31)
        return lambda x, c: x * multipliers[c] // 2**shift
    factors = [np.float32(scale_in) * np.float32(w) / np.float32(scale_y) for w in weights]
    return lambda x, c: int(np.rint(np.float32(x) * factors[c]))


def columns(points: list[list[int]]) -> Tensor:
    """Return accumulators ``[P, C]`` float64 from one list per channel, the short ones filled with zeros."""
    length = max(map(len, points))
    return torch.tensor([p + [0] * (length - len(p)) for p in points], dtype=torch.float64).T.contiguous()


def effective(module: Any, reals: list[float]) -> list[float]:
    """Return the factors that a module has after rounding its multipliers: only these tell where its steps are."""
    found: list[float] = module.reference.factor.tolist() if hasattr(module, "reference") else reals
    return [f or r for f, r in zip(found, reals, strict=True)]


def expected(acc: Tensor, formula: Rule, low: int, high: int) -> Tensor:
    rows = [[book.clamp(formula(int(x), c), low, high) for c, x in enumerate(row)] for row in acc.tolist()]
    return torch.tensor(rows, dtype=torch.float32)


def test_multipliers_are_tflites() -> None:
    rng = random.Random(0)
    for real in [0.0, 1.0, 0.5, 2.0**-31, 2.0**-32, 2.0**-33, 1 - 2.0**-40, 1.5, 2.0**20]:
        assert quantize_multiplier(real) == book.quantize_multiplier(real), real
    for _ in range(500):
        real = rng.random() * 2.0 ** rng.randint(-30, 10)
        assert quantize_multiplier(real) == book.quantize_multiplier(real), real


@pytest.mark.parametrize("real", [-1.0, 2.0**30, float("nan"), float("inf")])
def test_a_factor_without_fixed_point_form_is_refused(real: float) -> None:
    with pytest.raises(QuantError, match="fixed-point"):
        quantize_multiplier(real)


@given(int32s, int32s)
def test_high_mul_is_gemmlowps_and_rounds_half_up(a: int, b: int) -> None:
    found = int(saturating_rounding_doubling_high_mul(torch.tensor(a), torch.tensor(b)))
    assert found == book.high_mul(a, b)
    assert found == min(floor(Fraction(a * b, 2**31) + Fraction(1, 2)), 2**31 - 1)


@given(int32s, st.integers(0, 31))
def test_divide_by_power_is_gemmlowps_and_rounds_half_away(x: int, exponent: int) -> None:
    found = int(rounding_divide_by_power_of_two(torch.tensor(x), torch.tensor(exponent)))
    assert found == book.divide_by_power(x, exponent)
    away = floor(Fraction(abs(x), 2**exponent) + Fraction(1, 2))
    assert found == (away if x >= 0 else -away)


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("kind", ["signed", "relu", "affine"])
@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=12, deadline=None)
@given(st.floats(2.0**-14, 0.25, width=32), st.lists(scales, min_size=1, max_size=3), scales, st.integers(0, 99))
def test_requantize(
    name: str, bits: int, kind: str, scale_in: float, weights: list[float], scale_y: float, seed: int
) -> None:
    low, high = limits(bits, kind)
    formula = rule(name, scale_in, weights, scale_y, wide=name == "tflite" and bits == 16)
    reals = [scale_in * w / scale_y for w in weights]
    module = SEMANTICS[name].requantize(scale_in, torch.tensor(weights), scale_y, low=low, high=high)
    acc = columns([book.hard_points(r, low, high, 2**31, seed) for r in effective(module, reals)])
    wanted = expected(acc, formula, low, high)
    assert torch.equal(module(acc), wanted), module
    small = acc.clamp(-(2**24), 2**24)
    assert torch.equal(module(small.float()), expected(small, formula, low, high)), module


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("bits", [3, 8, 16])
@settings(max_examples=10, deadline=None)
@given(st.floats(2.0**-20, 2.0**-6, width=32), st.lists(scales, min_size=1, max_size=2), scales, st.integers(0, 99))
def test_requantize_of_long_accumulators(
    name: str, bits: int, scale_in: float, weights: list[float], scale_y: float, seed: int
) -> None:
    low, high = limits(bits, "signed")
    formula = rule(name, scale_in, weights, scale_y, wide=True)
    reals = [scale_in * w / scale_y for w in weights]
    module = SEMANTICS[name].requantize(scale_in, torch.tensor(weights), scale_y, low=low, high=high, wide=True)
    acc = columns([book.hard_points(r, low, high, 2**47, seed) for r in effective(module, reals)])
    assert torch.equal(module(acc), expected(acc, formula, low, high)), module


@pytest.mark.parametrize("name", SEMANTICS)
def test_a_step_beyond_int32_is_where_it_belongs(name: str) -> None:
    factor, weights = 2.0**-32 * 1.3, [1.0, 0.7]
    module = SEMANTICS[name].requantize(factor, torch.tensor(weights), 1.0, low=-4, high=3, wide=True)
    acc = columns([book.hard_points(r, -4, 3, 2**47, 5) for r in effective(module, [factor * w for w in weights])])
    formula = rule(name, float(np.float32(factor)), torch.tensor(weights).tolist(), 1.0, wide=True)
    assert torch.equal(module(acc), expected(acc, formula, -4, 3)), module


@pytest.mark.parametrize("bits", [31, 15])
@pytest.mark.parametrize("real", [
    2.0**-31, 2.0**-32, 2.0**-33 * 1.9, 2.0**-33, 2.0**-40 * 1.3, 2.0**-61 * 1.5, 2.0**-63, 1 - 2.0**-40, 2.0**14 * 1.7,
])  # fmt: skip
def test_the_constants_of_floor_are_those_of_the_book(real: float, bits: int) -> None:
    """Whether TFLite has a multiplier for a factor, which below 2^-32 it has not, means nothing here."""
    reals = [real, real * 0.3, real * 0.999]
    made = FloorShift(torch.tensor(reals, dtype=torch.float64), bits)
    assert (made.multiplier.tolist(), made.shift) == book.floor_constants(reals, bits)


@pytest.mark.parametrize("exponent", [-31.5, -32.0, -32.5, -34.0, -40.0])
def test_sums_of_48_bits_meet_factors_below_32(exponent: float) -> None:
    factor = float(np.float32(2.0**exponent))
    module = floor_.requantize(factor, torch.tensor([1.0, 0.7]), 1.0, low=-128, high=127, wide=True)
    formula = rule("floor", factor, torch.tensor([1.0, 0.7]).tolist(), 1.0, wide=True)
    acc = columns([book.hard_points(r, -128, 127, 2**47, 6) for r in effective(module, [factor, 0.7 * factor])])
    wanted = expected(acc, formula, -128, 127)
    assert len(wanted.unique()) > 20
    assert torch.equal(module(acc), wanted), module


@pytest.mark.parametrize("real", [0.0, -1.0, float("inf"), float("nan"), 2.0**31])
def test_a_factor_that_floor_cannot_hold_is_refused(real: float) -> None:
    with pytest.raises(QuantError, match="requantize: the factor"):
        FloorShift(torch.tensor([real], dtype=torch.float64), 31)


@given(st.floats(2.0**-31, 2.0**13), st.integers(0, 99))
@settings(deadline=None)
def test_the_references_are_the_rules(real: float, seed: int) -> None:
    pair = book.quantize_multiplier(real)
    points = book.hard_points(real, -(2**20), 2**20, 2**31, seed)
    doubled = DoubleRounding([pair])(torch.tensor(points)).tolist()
    assert doubled == [book.double_rounding(x, *pair) for x in points]
    points = book.hard_points(real, -(2**20), 2**20, 2**47, seed)
    assert SingleRounding([pair])(torch.tensor(points)).tolist() == [book.single_rounding(x, *pair) for x in points]


def ties(name: str) -> list[float]:
    module = SEMANTICS[name].requantize(0.25, torch.tensor([1.0]), 1.0, low=-8, high=7)
    codes: list[float] = module(torch.tensor([[-7.0], [-6.0], [-2.0], [-1.0], [0.0], [2.0], [6.0], [7.0]]))[:, 0]
    return torch.as_tensor(codes).tolist()


def test_ties_go_where_the_documentation_says() -> None:
    # -1.75, -1.5, -0.5, -0.25, 0, 0.5, 1.5, 1.75 in output steps
    assert ties("tflite") == [-2, -2, -1, 0, 0, 1, 2, 2]
    assert ties("float32") == [-2, -2, 0, 0, 0, 0, 2, 2]
    assert ties("floor") == [-2, -2, -1, -1, 0, 0, 1, 1]


def test_the_first_rounding_shows() -> None:
    """0.49999 of a step rounds to a half first, and then up: the offset that theorem 1 calls the kink."""
    module = tflite.requantize(2.0**-3, torch.tensor([1.0 - 2.0**-8]), 1.0, low=-8, high=7)
    assert module(torch.tensor([[4.0], [-4.0]]))[:, 0].tolist() == [1, -1]
    assert float32.requantize(2.0**-3, torch.tensor([1.0 - 2.0**-8]), 1.0, low=-8, high=7)(
        torch.tensor([[4.0]])
    ).item() == 0  # fmt: skip


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 9, 1), (3, 70, 2, 1), (2, 5, 1, 1), (1, 33, 50, 47), (41, 9)])
@pytest.mark.parametrize("bits", [4, 8])
def test_layout_and_type_do_not_matter(name: str, shape: tuple[int, ...], bits: int) -> None:
    generator = torch.Generator().manual_seed(1)
    low, high = limits(bits, "signed")
    weights = torch.rand(shape[1], generator=generator) / 64 + 2.0**-9
    acc = torch.randint(-9000, 9000, shape, generator=generator)
    formula = rule(name, 0.05, weights.tolist(), 0.06, wide=False)
    by_channel = acc.transpose(0, 1).reshape(shape[1], -1)[:, :40].T.double()
    wanted = expected(by_channel, formula, low, high)
    module = SEMANTICS[name].requantize(0.05, weights, 0.06, low=low, high=high)
    planar = module(acc.double())
    assert torch.equal(planar.transpose(0, 1).reshape(shape[1], -1)[:, :40].T, wanted)
    forms = [acc.float(), acc.double(), torch.stack([acc.float()] * 2, -1)[..., 0]]
    if len(shape) == 4:
        forms += [f.to(memory_format=torch.channels_last) for f in forms[:2]]
    for form in forms:
        before = form.clone()
        assert torch.equal(module(form), planar)
        assert torch.equal(form, before)


def test_channels_last_stays_channels_last() -> None:
    acc = torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last)
    for module in SEMANTICS.values():
        out = module.requantize(0.5, torch.ones(3), 1.0, low=-8, high=7)(acc)
        assert out.is_contiguous(memory_format=torch.channels_last)


def sums(name: str, scales_: tuple[float, float, float], zeros: tuple[int, int, int], wide: bool) -> Rule:
    """Return ``(a, b) -> unclamped code`` of a residual addition by the book."""
    a, b, y = scales_
    if name == "tflite":
        return lambda p, q: book.tflite_add(p, q, scales_, 15 if wide else 20)
    if name == "floor":
        (first, second), shift = book.floor_constants([a / y, b / y], 31)
        return lambda p, q: (p * first + q * second) // 2**shift
    ratio_a, ratio_b = np.float32(a) / np.float32(y), np.float32(b) / np.float32(y)
    inner = nearest(Fraction(float(ratio_a)) * zeros[0] + Fraction(float(np.float32(ratio_b * np.float32(zeros[1])))))
    fixed = Fraction(float(np.float32(zeros[2]) - np.float32(inner)))

    def fused(p: int, q: int) -> int:
        part = Fraction(nearest((q + zeros[1]) * Fraction(float(ratio_b)) + fixed))
        return int(np.rint(np.float32(nearest((p + zeros[0]) * Fraction(float(ratio_a)) + part)))) - zeros[2]

    return fused


def nearest(value: Fraction) -> float:
    """Return the float32 nearest to an exact value, ties to even."""
    if value == 0:
        return 0.0
    unit = Fraction(2) ** max(book.exponent_of(abs(value)) - 24, -149)
    return float(round(value / unit) * unit)


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@settings(max_examples=10, deadline=None)
@given(st.tuples(scales, scales, scales), st.integers(0, 99))
def test_add(name: str, bits: int, scales_: tuple[float, float, float], seed: int) -> None:
    rng = random.Random(seed)
    top = 2**bits - 1
    zeros = (rng.randint(0, top), rng.randint(0, top), rng.randint(0, top))
    low, high = -zeros[2], top - zeros[2]
    firsts = [-zeros[0], top - zeros[0], 0, *(rng.randint(-zeros[0], top - zeros[0]) for _ in range(15))]
    seconds = [-zeros[1], top - zeros[1], 0, *(rng.randint(-zeros[1], top - zeros[1]) for _ in range(15))]
    pairs = [(p, q) for p in firsts for q in seconds]
    a, b = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float32).reshape(2, 3, -1, 6) for i in (0, 1))
    module = SEMANTICS[name].add(
        scales_[0], zeros[0], scales_[1], zeros[1], scales_[2], zeros[2], low, high, reach=top
    )  # fmt: skip
    formula = sums(name, scales_, zeros, wide=bits == 16)
    wanted = torch.tensor([book.clamp(formula(p, q), low, high) for p, q in pairs], dtype=torch.float32)
    assert torch.equal(module(a, b), wanted.reshape(a.shape)), module
    last = torch.channels_last
    mixed = module(a.contiguous(memory_format=last), b)
    assert torch.equal(mixed, wanted.reshape(a.shape)) and mixed.is_contiguous(memory_format=last)


@pytest.mark.parametrize("name", ["tflite", "floor"])
@pytest.mark.parametrize("reach", [7, 255])
def test_add_of_every_pair_is_the_reference(name: str, reach: int) -> None:
    """Scales as round as these put results on the very edge of a step, where float64 is not enough."""
    generator, paths = torch.Generator().manual_seed(7), set()
    some = (torch.rand(4, 3, generator=generator) + 0.1).tolist()
    codes = torch.arange(-reach, reach + 1.0)
    a, b = codes.repeat_interleave(len(codes)), codes.repeat(len(codes))
    for scale_a, scale_b, scale_y in [(0.5, 0.75, 1.0), (0.25, 1.0, 0.5), *some]:
        module = SEMANTICS[name].add(scale_a, 0, scale_b, 0, scale_y, 0, -128, 127, reach=reach)
        wanted = module.reference(a.long(), b.long()).clamp(-128, 127)
        assert torch.equal(module(a, b).long(), wanted), module
        paths.add(module.path)
    assert "float64" in paths and "int64" not in paths
    assert name != "tflite" or "table" in paths


@pytest.mark.parametrize("name", SEMANTICS)
def test_add_of_16_bit_inputs_to_8_bits(name: str) -> None:
    rng = random.Random(3)
    scales_ = (2.0**-15, 3 * 2.0**-17, 2.0**-7)
    pairs = [(rng.randint(-32768, 32767), rng.randint(-32768, 32767)) for _ in range(300)] + [(-32768, -32768)]
    module = SEMANTICS[name].add(scales_[0], 0, scales_[1], 0, scales_[2], 0, -128, 127, reach=32768)
    formula = sums(name, scales_, (0, 0, 0), wide=True)
    a, b = (torch.tensor([pair[i] for pair in pairs], dtype=torch.float32) for i in (0, 1))
    assert module(a, b).tolist() == [book.clamp(formula(p, q), -128, 127) for p, q in pairs]


@pytest.mark.parametrize("name", SEMANTICS)
def test_scales_beyond_the_arithmetic_are_refused(name: str) -> None:
    semantics = SEMANTICS[name]
    for weight in (3e38, float("inf"), float("nan")):  # the product is infinite as float32
        with pytest.raises(QuantError, match="requantize: the factor"):
            semantics.requantize(1e29, torch.tensor([1.0, weight]), 1e-30, low=-128, high=127)
    with pytest.raises(QuantError, match="the factor"):
        semantics.mean(1e30, 1e-30, 4, -128, 127)
    with pytest.raises(QuantError, match="the factor"):
        semantics.add(1e29, 3, 1.0, 2, 1e-30, 1, -128, 127)


def test_float32_refuses_factors_that_vanish() -> None:
    """As float32 they are 0, and what they multiply has no code of its own any more."""
    with pytest.raises(QuantError, match=r"the factor 0\.0 is no float32 > 0"):
        float32.requantize(1e-30, torch.tensor([1.0, 1e-30]), 1.0, low=-128, high=127)
    with pytest.raises(QuantError, match=r"the factor 0\.0 is no float32 > 0"):
        float32.mean(1e-30, 1e20, 4, -128, 127)
    # both ratios are finite, their sum times the zero points is not
    with pytest.raises(QuantError, match=r"add: the offset .* is no float32"):
        float32.add(1e29, 255, 1e29, 255, 1e-9, 1, -128, 127)


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("bits", BITS)
@settings(max_examples=10, deadline=None)
@given(scales, scales, st.integers(1, 400), st.integers(0, 99))
def test_mean(name: str, bits: int, scale_x: float, scale_y: float, count: int, seed: int) -> None:
    low, high = limits(bits, "signed")
    real = scale_x / (scale_y * count)
    totals = book.hard_points(real, low, high, min(2**24, count * 2**bits), seed)
    module = SEMANTICS[name].mean(scale_x, scale_y, count, low, high)
    if name == "tflite":
        unclamped = [book.tflite_mean(t, scale_x, scale_y, count) for t in totals]
    elif name == "floor":
        (multiplier,), shift = book.floor_constants([real], 31)
        unclamped = [t * multiplier // 2**shift for t in totals]
    else:
        factor = np.float32(scale_x) / (np.float32(scale_y) * np.float32(count))
        unclamped = [int(np.rint(np.float32(t) * factor)) for t in totals]
    found = module(torch.tensor(totals, dtype=torch.float32).reshape(-1, 1, 1, 1)).flatten()
    assert found.tolist() == [book.clamp(u, low, high) for u in unclamped], module


@pytest.mark.parametrize("name", SEMANTICS)
@pytest.mark.parametrize("real", [0.70710678, 0.41421356, 0.16180339, 0.0314159])
def test_the_stated_rounding_offset_is_the_measured_one(name: str, real: float) -> None:
    """Multiples of an irrational factor fill a step evenly, so the mean of code minus real value is the offset."""
    module: Any = SEMANTICS[name].requantize(1.0, torch.tensor([real]), 1.0, low=-(2**20), high=2**20, wide=False)
    constant, kink = (float(t) for t in module.rounding())
    acc = torch.arange(1, 2**15, dtype=torch.float64)[:, None]
    exact = float(torch.tensor(real))
    for sign in (1, -1):
        error = module(sign * acc).double() - sign * acc * exact
        assert abs(float(error.mean()) - constant - sign * kink) < 0.001


def test_a_module_says_which_path_it_took() -> None:
    module: nn.Module = tflite.requantize(0.02, torch.tensor([0.01]), 0.04, low=-128, high=127)
    assert "path=float64" in repr(module) and "low=-128" in repr(module)
