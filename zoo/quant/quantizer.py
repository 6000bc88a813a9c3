"""A module that quantizes one tensor: its format, its scale and its zero point."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from zoo.errors import QuantError
from zoo.native.kernels import Kernels
from zoo.quant import ops
from zoo.quant.spec import Format


def signed_scale(scale: Tensor, sign: Tensor | None, axis: int | None) -> tuple[Tensor, int | None]:
    """Return scale times sign, and the axis that they belong to."""
    return (scale, axis) if sign is None else (scale * sign, 0)


class RangeLearner(nn.Module):
    """What a file of ``zoo/quant/learned`` offers: quantizes in a quantizer's place while its range is learned."""

    decay: float = 0.0  # weight decay of its parameters
    freezes: bool = True  # whether a weight may be frozen at an integer: not where the scale follows from the weights
    any_scale: bool = False  # whether it learns powers of two as well, which others leave as calibrated
    kernels: Kernels | None = None  # what computes on a CPU in place of PyTorch's operations

    def forward(self, x: Tensor, quantizer: Quantizer, sign: Tensor | None = None) -> Tensor:
        """Return the fake-quantized tensor; ``sign`` [channels] multiplies the scale."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """Return the scale [1] or [channels]."""
        raise NotImplementedError

    def normed(self, u: Tensor, norm: nn.BatchNorm1d | nn.BatchNorm2d, quantizer: Quantizer) -> Tensor | None:
        """Return what ``self(norm(u))`` would be; None unless one operation does both."""
        return None

    def limit(self) -> None:
        """Keep the range positive; called after each step of the optimizer."""

    def measure(self, x: Tensor, quantizer: Quantizer) -> None:
        """Take in the final weight, where the range follows from it."""

    def settle(self, quantizer: Quantizer) -> None:
        """Write what was learned into the quantizer."""
        raise NotImplementedError


class Quantizer(nn.Module):
    """Fake-quantize a tensor; passes it through untouched until ``set_range`` or ``set_qparams`` was called.

    ``channels`` = 0 for one scale per tensor, else the length of axis 0 (weights).
    """

    scale: nn.Parameter
    zero_point: Tensor
    ready: Tensor

    def __init__(self, fmt: Format, *, signed: bool, channels: int = 0) -> None:
        """Make an uncalibrated quantizer."""
        super().__init__()
        self.fmt, self.signed, self._of_weights = fmt, signed, channels > 0
        self.axis = 0 if channels and fmt.granularity == "per_channel" else None
        self.qmin, self.qmax = fmt.limits(signed)
        count = channels if self.axis == 0 else 1
        self.scale = nn.Parameter(torch.ones(count, dtype=torch.float32), requires_grad=False)
        self.register_buffer("zero_point", torch.zeros(count, dtype=torch.float32))
        self.register_buffer("ready", torch.zeros((), dtype=torch.bool))
        self.active = False
        self.drop = 0.0
        # while a network is trained: a module of zoo/quant/learned, which computes with its own scale
        self.learner: RangeLearner | None = None

    def extra_repr(self) -> str:
        """Return the format in a line."""
        levels = ", mid-rise" if self.fmt.mid_rise else ""
        return f"{'int' if self.signed else 'uint'}{self.fmt.bits}, qmin={self.qmin}, qmax={self.qmax}{levels}"

    @property
    def of_weights(self) -> bool:
        """Return whether it quantizes weights, not activations."""
        return self._of_weights

    @torch.no_grad()
    def set_qparams(self, scale: Tensor, zero_point: Tensor | None = None) -> None:
        """Set scale (> 0, finite) and zero point; a power-of-two format rounds the scale up to the next 2^k."""
        scale = scale.detach().reshape(-1).float()
        if not bool(torch.isfinite(scale).all()) or bool((scale <= 0).any()):
            raise QuantError("a scale is zero, negative or not finite; the calibration data hold NaN or infinity")
        if self.fmt.scale == "pow2":
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        self.scale.copy_(scale.expand_as(self.scale))
        if zero_point is not None:
            self.zero_point.copy_(zero_point.reshape(-1).float().expand_as(self.zero_point))
        self.ready.fill_(True)
        self.active = True

    @torch.no_grad()
    def set_range(self, low: Tensor, high: Tensor) -> None:
        """Set scale and zero point from the real range(s) to represent; zero is always representable.

        Symmetric: ``s = max(|low| / -qmin, high / qmax)``, with mid-rise levels both ends plus 1/2. Affine:
        ``s = (high - low) / (qmax - qmin)``, ``z = round(qmin - low / s)`` (Krishnamoorthi 2018, eq. 2-4). A constant
        zero tensor gets the scale 1 / qmax, a weight's channel of zeros a tiny one.
        """
        low, high = low.detach().reshape(-1).double().clamp(max=0), high.detach().reshape(-1).double().clamp(min=0)
        if not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise QuantError("the range is not finite: activations or weights hold NaN or infinity")
        if self.fmt.symmetric:
            least, most = self.qmin + self.fmt.offset, max(self.qmax, 1) + self.fmt.offset
            scale = torch.maximum(high / most, (low / least) if least else torch.zeros_like(low))
        else:
            scale = (high - low) / (self.qmax - self.qmin)
        # the step of a weight is a factor of its bias's, which a channel of zeros still has; without a level at zero,
        # only a small step keeps such a channel near it
        empty = 1e-12 if self.of_weights else 1.0 / self.qmax
        scale = torch.where(scale < 1e-30, torch.full_like(scale, empty), scale)
        if self.fmt.scale == "pow2":
            scale = torch.exp2(torch.ceil(torch.log2(scale)))
        zero = torch.zeros_like(scale)
        if not self.fmt.symmetric:
            zero = torch.round(self.qmin - low / scale).clamp(self.qmin, self.qmax)
        self.set_qparams(scale, zero)

    def range(self) -> tuple[Tensor, Tensor]:
        """Return the real values of the smallest and the largest code."""
        low, high = (end - self.zero_point + self.fmt.offset for end in (self.qmin, self.qmax))
        return low * self.scale, high * self.scale

    def codes(self, x: Tensor, sign: Tensor | None = None) -> Tensor:
        """Return the integer codes of ``x`` as float32; ``sign`` as in ``forward``."""
        scale, axis = signed_scale(self.scale.detach(), sign, self.axis)
        if self.fmt.mid_rise:
            x = x - ops.half_step(scale, x, axis)
        return ops.quantize(x, scale, self.zero_point, self.qmin, self.qmax, axis)

    def lsq_gain(self, x: Tensor) -> float:
        """Return ``1 / sqrt(N qmax)`` (Esser et al. 2020, section 2.2).

        N is the number of weights that share a scale, or of features of one image.
        """
        count = x.numel() / (self.scale.numel() if self._of_weights else max(x.shape[0], 1))
        return 1.0 / math.sqrt(count * max(self.qmax, 1))

    def forward(self, x: Tensor, sign: Tensor | None = None) -> Tensor:
        """Return the fake-quantized tensor, of the same shape; ``sign`` [channels] is what multiplies the scale."""
        if not self.active:
            return x
        if self.learner is not None:
            return self.learner(x, self, sign)  # type: ignore[no-any-return]
        if self.fmt.mid_rise:
            scale, axis = (
                (self.scale, self.axis) if sign is None else signed_scale(self.scale.detach(), sign, self.axis)
            )
            half = ops.half_step(scale, x, axis, self.lsq_gain(x))
            return self._fake(x - half, sign) + half
        return self._fake(x, sign)

    def _fake(self, x: Tensor, sign: Tensor | None) -> Tensor:
        if sign is not None:
            scale, axis = signed_scale(self.scale.detach(), sign, self.axis)
            return ops.fake_quantize(x, scale, self.zero_point, self.qmin, self.qmax, axis)
        if torch.is_grad_enabled() and (x.requires_grad or self.scale.requires_grad):
            gain = self.lsq_gain(x)
            y: Tensor = ops.LearnedScale.apply(x, self.scale, self.zero_point, self.qmin, self.qmax, self.axis, gain)
            if self.drop and self.training:
                # QDrop (Wei et al. 2022): an element stays unquantized with probability ``drop``
                y = torch.where(torch.rand_like(y) < self.drop, x, y)
            return y
        return ops.fake_quantize(x, self.scale, self.zero_point, self.qmin, self.qmax, self.axis)
