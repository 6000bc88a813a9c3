"""Fixed-point rescaling in plain int64, as the specifications write it: what every fast path must equal."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from zoo.errors import QuantError

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


def quantize_multiplier(real: float) -> tuple[int, int]:
    """Return ``(mantissa, shift)`` with ``real ~ mantissa * 2**(shift - 31)`` and a mantissa in [2^30, 2^31).

    TFLite's ``QuantizeMultiplier``; a factor below 2^-32 becomes 0. Raises QuantError unless 0 <= real < 2^30.
    """
    if not 0 <= real < 2.0**30:
        raise QuantError(f"requantize: the factor {real!r} has no fixed-point form; calibrate scales that are > 0")
    if real == 0:
        return 0, 0
    fraction, exponent = math.frexp(real)
    mantissa = math.floor(fraction * 2**31 + 0.5)
    if mantissa == 2**31:
        mantissa, exponent = mantissa // 2, exponent + 1
    return (0, 0) if exponent < -31 else (mantissa, exponent)


class Rescale(nn.Module):
    """A nondecreasing map of int64 accumulators to int64 codes, one per channel (axis 1) or one in all.

    ``factor`` float64 [C], ``offset`` and ``kink`` float64 [C], ``digits`` int say what the map is in real numbers:
    ``floor(x * factor + offset + sign(x) * kink)``, where all of these are multiples of ``2**-digits``. It holds for
    accumulators in ``[-domain, domain)``.
    """

    domain: int = 2**31

    factor: Tensor
    offset: Tensor
    kink: Tensor
    digits: int

    def _describe(self, factor: Tensor, offset: Tensor, kink: Tensor, digits: int) -> None:
        self.register_buffer("factor", factor, persistent=False)
        self.register_buffer("offset", offset, persistent=False)
        self.register_buffer("kink", kink, persistent=False)
        self.digits = digits

    def part(self, channels: slice) -> Rescale:
        """Return the map of some of the channels; its buffers are views."""
        made = copy.copy(self)
        made._buffers = {name: None if t is None else t[channels] for name, t in self._buffers.items()}
        return made


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """Return ``values`` [C] or [1] shaped so that it broadcasts along axis 1 of ``x``."""
    return values.reshape([1, -1] + [1] * (x.dim() - 2)) if x.dim() > 1 else values


def saturating_rounding_doubling_high_mul(a: Tensor, b: Tensor) -> Tensor:
    """Return the high 32 bits of ``2ab`` for int64 tensors that hold int32 values, as gemmlowp rounds them."""
    product = a * b
    nudge = torch.where(product >= 0, 2**30, 1 - 2**30)
    return torch.div(product + nudge, 2**31, rounding_mode="trunc").clamp_(INT32_MIN, INT32_MAX)


def rounding_divide_by_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    """Return ``x / 2**exponent`` rounded to nearest, ties away from zero (int64, exponent 0 to 31)."""
    mask = (torch.ones_like(exponent) << exponent) - 1
    threshold = (mask >> 1) + (x < 0)
    return (x >> exponent) + ((x & mask) > threshold)


class DoubleRounding(Rescale):
    """TFLite's ``MultiplyByQuantizedMultiplier`` for int32 accumulators; the left shift saturates at int32."""

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Take ``(mantissa, shift)`` per channel; a positive shift goes left."""
        super().__init__()
        mantissa, shift = torch.tensor([p[0] for p in pairs]), torch.tensor([p[1] for p in pairs])
        self.register_buffer("mantissa", mantissa, persistent=False)
        self.register_buffer("left", shift.clamp(min=0), persistent=False)
        self.register_buffer("right", (-shift).clamp(min=0), persistent=False)
        right = self.right.double()
        kink = torch.where(right > 0, torch.exp2(-right - 1), 0.0)  # docs/semantics.md, theorem 1
        factor = mantissa.double() * torch.exp2(shift.double() - 31)
        self._describe(factor, torch.full_like(kink, 0.5), kink, 31 + int(self.right.max()))

    mantissa: Tensor
    left: Tensor
    right: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the unclamped codes of int64 ``x`` [N, C, ...]."""
        mantissa, left, right = (per_channel(t, x) for t in (self.mantissa, self.left, self.right))
        shifted = (x.clamp(INT32_MIN, INT32_MAX) << left).clamp_(INT32_MIN, INT32_MAX)
        return rounding_divide_by_power_of_two(saturating_rounding_doubling_high_mul(shifted, mantissa), right)


class SingleRounding(Rescale):
    """TFLite's ``MultiplyByQuantizedMultiplier`` for int64 accumulators (16-bit activations): a 15-bit multiplier."""

    domain = 2**47

    def __init__(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Take the 31-bit ``(mantissa, shift)`` per channel."""
        super().__init__()
        reduced = [(m + 2**15) >> 16 if m < 0x7FFF0000 else 0x7FFF for m, _ in pairs]
        total = [15 - s for _, s in pairs]
        if min(total) < 1:
            raise QuantError("requantize: a factor of 2^14 or more has no 16-bit fixed-point form; use larger scales")
        self.register_buffer("mantissa", torch.tensor(reduced), persistent=False)
        self.register_buffer("total", torch.tensor(total), persistent=False)
        factor = self.mantissa.double() * torch.exp2(-self.total.double())
        self._describe(factor, torch.full_like(factor, 0.5), torch.zeros_like(factor), int(self.total.max()))

    mantissa: Tensor
    total: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the unclamped codes of int64 ``x`` [N, C, ...], |x| < 2^47."""
        mantissa, total = per_channel(self.mantissa, x), per_channel(self.total, x)
        return (x * mantissa + (torch.ones_like(total) << (total - 1))) >> total


class FloorShift(Rescale):
    """``(x * multiplier) >> shift``, rounding towards minus infinity."""

    def __init__(self, real: Tensor, bits: int) -> None:
        """Take real factors, float64 [C]; the largest gets ``bits`` bits, all share one shift."""
        super().__init__()
        largest = float(real.max())
        if not 0 < largest < math.inf:
            raise QuantError(
                f"requantize: the factor {largest!r} has no fixed-point form; calibrate scales that are > 0"
            )
        self.shift, self.domain = min(bits - math.frexp(largest)[1], 62), 2 ** (62 - bits)
        if self.shift < 0:
            raise QuantError(f"requantize: the factor {largest!r} needs a left shift; use larger scales")
        multiplier = torch.floor(real * 2.0**self.shift + 0.5).clamp_(max=2.0**bits - 1)
        self.register_buffer("multiplier", multiplier.to(torch.int64), persistent=False)
        factor, zero = multiplier * 2.0**-self.shift, torch.zeros_like(multiplier)
        self._describe(factor, zero, zero.clone(), self.shift)

    multiplier: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Return the unclamped codes of int64 ``x`` [N, C, ...]."""
        return (x * per_channel(self.multiplier, x)) >> self.shift
