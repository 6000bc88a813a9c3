"""Exact rescaling at float speed: each shortcut is proven for its own constants when built (docs/semantics.md)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from zoo.integer.semantics._fixed_point import Rescale
from zoo.quant.ops import channels_last, dense, flat

Path = Literal["float32", "float64", "int64"]
CHUNK = 1 << 16  # elements: a float64 scratch of this size stays in a core's cache
TILE = 2048  # elements: the constants of few channels are repeated to this length, or the inner loops get too short
FEW_LEVELS = 64  # float32 rarely passes the proof beyond, so trying it would only cost time
MANY_LEVELS = 255  # of 8 bits; 16-bit outputs rely on theorem 2 alone
MOST_STEPS = 1 << 22  # levels * channels: the proof of a layer with more would take longer than it saves
POINTS = 1 << 17  # examined at once: what the proof needs in memory does not grow with the layer


class Staircase(nn.Module):
    """Clamped codes ``[N, C, ...]`` float32 of exact accumulators ``[N, C, ...]``, float32 or float64.

    ``path`` says how: ``float32`` or ``float64`` (multiply, add, floor; proven equal), else the int64 ``reference``.
    """

    def __init__(self, reference: Rescale, low: int, high: int) -> None:
        """Choose the fastest path that is proven to equal ``clamp(reference(acc), low, high)``."""
        super().__init__()
        self.reference, self.low, self.high = reference, low, high
        positive = low >= 0  # then what a negative accumulator gives is clamped away, whatever its rounding
        offset = reference.offset + reference.kink if positive else reference.offset
        kink = torch.zeros_like(reference.kink) if positive else reference.kink
        self.bent = bool((kink != 0).any())
        self._constants(torch.float64, reference.factor, offset, kink)
        self.path: Path = "int64"
        levels = high - low  # where there are none, all that is clamped is alike
        exact = levels == 0 or (max(abs(low), abs(high)) + 2).bit_length() + reference.digits <= 53  # theorem 2
        few = 0 < levels <= FEW_LEVELS
        if (few or (not exact and levels <= MANY_LEVELS)) and levels * offset.numel() <= MOST_STEPS:
            found = self._proven(offset, kink, (torch.float32, torch.float64) if few else (torch.float64,))
            if found is not None:
                dtype, middle = found
                self._constants(dtype, reference.factor, middle, kink)
                self.path = "float32" if dtype == torch.float32 else "float64"
                return
        self.path = "float64" if exact else "int64"

    factor: Tensor
    offset: Tensor
    kink: Tensor

    def extra_repr(self) -> str:
        """Name the path and the clamp."""
        return f"path={self.path}, low={self.low}, high={self.high}"

    def rounding(self) -> tuple[Tensor, Tensor]:
        """Return how far this rounding lies above round-half: a constant and a part away from zero, in steps [C]."""
        return self.reference.offset.double() - 0.5, self.reference.kink.double()

    def forward(self, acc: Tensor) -> Tensor:
        """Return the codes in the memory format of ``acc``."""
        acc = dense(acc)
        out = torch.empty_like(acc, dtype=torch.float32)
        if not acc.numel():
            return out
        if self.path == "int64":
            return out.copy_(self.reference(acc.to(torch.int64)).clamp_(self.low, self.high))
        if channels_last(acc) or acc.dim() <= 2 or self.factor.numel() == 1:
            self._interleaved(flat(acc), flat(out))
        else:
            self._planar(acc, out)
        return out

    def _constants(self, dtype: torch.dtype, factor: Tensor, offset: Tensor, kink: Tensor) -> None:
        for name, value in (("factor", factor), ("offset", offset), ("kink", kink)):
            self.register_buffer(name, value.to(dtype), persistent=False)

    def _interleaved(self, x: Tensor, out: Tensor) -> None:
        """Channel is the fastest axis: rows of ``repeats`` times all channels meet one row of constants."""
        channels = self.factor.numel()
        width = channels * -(-TILE // channels)
        row = [t.repeat(width // channels) for t in (self.factor, self.offset, self.kink)]
        whole = x.numel() // width * width
        if whole:
            self._stairs(x[:whole].view(-1, width), out[:whole].view(-1, width), [t[None] for t in row])
        if whole < x.numel():
            rest = x.numel() - whole
            self._stairs(x[whole:][None], out[whole:][None], [t[None, :rest] for t in row])

    def _planar(self, acc: Tensor, out: Tensor) -> None:
        """One row per image and channel."""
        rows = acc.shape[0] * acc.shape[1]
        constants = [t.repeat(acc.shape[0])[:, None] for t in (self.factor, self.offset, self.kink)]
        self._stairs(acc.view(rows, -1), out.view(rows, -1), constants)

    def _stairs(self, x: Tensor, out: Tensor, constants: list[Tensor]) -> None:
        """Work through 2-d views some rows at a time, so that the scratch stays in the cache."""
        size = CHUNK if x.device.type == "cpu" else x.numel()
        rows = max(1, min(size // max(x.shape[1], 1), x.shape[0]))
        single = constants[0].dtype == torch.float32
        scratch = None if single else x.new_empty((rows, x.shape[1]), dtype=torch.float64)
        bend = x.new_empty((rows, x.shape[1]), dtype=constants[0].dtype) if self.bent else None
        pieces = [(t if t.shape[0] == 1 else torch.split(t, rows)) for t in constants]
        for i, (source, target) in enumerate(zip(torch.split(x, rows), torch.split(out, rows), strict=True)):
            factor, offset, kink = (p if isinstance(p, Tensor) else p[i] for p in pieces)
            y = target if scratch is None else scratch[: len(source)]
            if y is not source:
                y.copy_(source)
            y.mul_(factor)
            if bend is not None:
                y.add_(torch.copysign(kink, y, out=bend[: len(source)]))
            y.add_(offset).floor_()
            (y if scratch is None else target.copy_(y)).clamp_(self.low, self.high)

    def _proven(
        self, offset: Tensor, kink: Tensor, types: tuple[torch.dtype, ...]
    ) -> tuple[torch.dtype, Tensor] | None:  # fmt: skip
        """Return the first type that equals the reference in every channel, and the offsets [C] that it takes."""
        left, parts = list(types), []
        width = max(1, POINTS // (3 * (self.high - self.low)))
        for start in range(0, offset.numel(), width):
            part = slice(start, start + width)
            reference, factor = self.reference.part(part), self.reference.factor[part]
            points = _brackets(reference, offset[part], kink[part], self.low, self.high)
            if points is None:
                return None
            wanted = reference(points).clamp_(self.low, self.high)
            # midway between the accumulators around the steps
            y = points * factor
            y += torch.copysign(kink[part], y) + offset[part]
            parts.append(offset[part] + middle_shift(y, wanted.double(), self.low, self.high))
            found = torch.empty(points.shape, dtype=torch.float32)
            for dtype in tuple(left):
                constants = [t.to(dtype)[None] for t in (factor, parts[-1], kink[part])]
                self._stairs(points.double(), found, constants)
                if not torch.equal(found.to(torch.int64), wanted):
                    left.remove(dtype)
            if not left:
                return None
        return left[0], torch.cat(parts)


def _brackets(reference: Rescale, offset: Tensor, kink: Tensor, low: int, high: int) -> Tensor | None:
    """Return accumulators [P, C] that hold, for every level, the last below it and the first on it (theorem 3)."""
    domain = reference.domain
    levels = torch.arange(low + 1, high + 1, dtype=torch.float64)[:, None]
    real = (levels - offset - torch.where(levels > 0, kink, -kink)) / reference.factor
    near = real.nan_to_num(0.0, domain, -domain).clamp_(-domain, domain).ceil().to(torch.int64)
    points = torch.stack([near - 1, near, near + 1]).clamp_(-domain, domain - 1)
    below = reference(points[0]) < levels
    above = reference(points[2]) >= levels
    sure = (below | (points[0] == -domain)) & (above | (points[2] == domain - 1))
    return points.reshape(-1, near.shape[1]) if bool(sure.all()) else None


def middle_shift(y: Tensor, wanted: Tensor, low: int, high: int) -> Tensor:
    """Return, per column, what to add to ``y`` so that ``floor(y) = wanted`` holds with equal room on both sides."""
    room_down = torch.where(wanted > low, y - wanted, torch.inf).amin(0).clamp_(max=0.25)
    room_up = torch.where(wanted < high, wanted + 1 - y, torch.inf).amin(0).clamp_(max=0.25)
    return (room_up - room_down) / 2


def chunks(x: Tensor) -> tuple[Tensor, ...]:
    """Return flat, cache-sized views of a dense tensor."""
    return torch.split(flat(x), CHUNK if x.device.type == "cpu" else max(x.numel(), 1))


class Sum(nn.Module):
    """Clamped codes of two centred inputs: ``floor(a A + b B + offset)`` in float64 where proven, else a table.

    The proof is by enumeration of all pairs of codes up to ``reach``; beyond 8 bits the int64 ``reference`` runs.
    """

    def __init__(self, reference: nn.Module, outer: Rescale, factors: tuple[float, float], low: int, high: int,
                 reach: int) -> None:  # fmt: skip
        """Take the int64 function of two codes, its last rescaling, and its slopes."""
        super().__init__()
        self.reference, self.low, self.high, self.reach = reference, low, high, reach
        self.a, self.b = factors
        self.kink, self.offset = float(outer.kink), float(outer.offset)
        self.path: Literal["float64", "table", "int64"] = "int64"
        if reach > 255:
            return
        codes = torch.arange(-reach, reach + 1, dtype=torch.float32)
        first, second = codes.repeat_interleave(len(codes)), codes.repeat(len(codes))
        wanted = self(first, second)
        y = first.double() * self.a + second.double() * self.b
        y += torch.copysign(torch.tensor(self.kink, dtype=torch.float64), y) + self.offset
        self.offset += float(middle_shift(y[:, None], wanted.double()[:, None], low, high))
        self.path = "float64"
        if not torch.equal(self(first, second), wanted):
            self.path = "table"
            self.register_buffer("table", wanted, persistent=False)

    table: Tensor

    def extra_repr(self) -> str:
        """Name the path and the clamp."""
        return f"path={self.path}, low={self.low}, high={self.high}"

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the codes of ``a + b`` (equal shapes), in the memory format of ``a``."""
        a, b = aligned(a, b)
        if self.path == "int64":
            codes: Tensor = self.reference(a.to(torch.int64), b.to(torch.int64))
            return codes.clamp_(self.low, self.high).float()
        out = torch.empty_like(a)
        if self.path == "table":
            index = (flat(a) + self.reach) * (2 * self.reach + 1) + (flat(b) + self.reach)
            flat(out).copy_(torch.take(self.table, index.long()))
            return out
        kink = torch.tensor(self.kink, dtype=torch.float64, device=a.device)
        for x, z, result in zip(chunks(a), chunks(b), chunks(out), strict=True):
            y = x.double().mul_(self.a).add_(z.double().mul_(self.b))
            if self.kink:
                y.add_(torch.copysign(kink, y))
            result.copy_(y.add_(self.offset).floor_()).clamp_(self.low, self.high)
        return out


def aligned(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both with one dense memory layout, the one of ``a`` if it has one."""
    layout = torch.channels_last if channels_last(a) else torch.contiguous_format
    return a.contiguous(memory_format=layout), b.contiguous(memory_format=layout)
