"""What a tensor's integer format is, and which tensors get which."""

from __future__ import annotations

import fnmatch
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from zoo.errors import RecipeError
from zoo.resolve import build

BITS = (2, 3, 4, 5, 6, 7, 8, 16)
MID_RISE_BITS = 4  # beyond, odd codes do not fit a byte, and half a step gains nothing
FIRST, LAST = ":first", ":last"
_NO_ZERO = "activations need a level at zero; mid-rise levels are for weights"


@dataclass(frozen=True)
class Format:
    """An integer format: bits, symmetric or affine, one scale per tensor or per output channel, float or 2^k scale.

    ``mid_rise`` levels lie half a step beside zero, ``(q + 1/2) s``: of two bits -3/2, -1/2, 1/2 and 3/2 steps, where
    the codes of two's complement have -2, -1, 0 and 1. As many are positive as negative, which counts where there are
    few (Choi et al. 2019 and Liu et al. 2025, ParetoQ, take them for 2-bit weights). Weights alone: activations and
    padding need a zero. A checkpoint holds the odd codes 2q + 1 and half the step, so kernels need nothing new.
    """

    bits: int = 8
    symmetric: bool = True
    granularity: Literal["per_tensor", "per_channel"] = "per_tensor"
    scale: Literal["float", "pow2"] = "float"
    narrow: bool = False
    mid_rise: bool = False

    def __post_init__(self) -> None:
        """Refuse bit widths that no checkpoint can hold."""
        if self.bits not in BITS:
            raise ValueError(f"bits must be one of {', '.join(map(str, BITS))}, got {self.bits}")
        if self.narrow and not self.symmetric:
            raise ValueError("narrow range needs a symmetric format")
        if self.mid_rise and (not self.symmetric or self.narrow):
            raise ValueError("mid_rise needs a symmetric format without narrow")
        if self.mid_rise and self.bits > MID_RISE_BITS:
            raise ValueError(f"mid_rise is for 2..{MID_RISE_BITS} bits, got {self.bits}; set mid_rise: false")

    @property
    def offset(self) -> float:
        """Return what is added to a code less its zero point, before the scale: 1/2 for mid-rise levels."""
        return 0.5 if self.mid_rise else 0.0

    def limits(self, signed: bool) -> tuple[int, int]:
        """Return the smallest and largest code."""
        if not signed:
            return 0, 2**self.bits - 1
        return -(2 ** (self.bits - 1)) + int(self.narrow), 2 ** (self.bits - 1) - 1


@dataclass(frozen=True)
class Override:
    """Changes for the layers that ``match`` names: a shell wildcard on module names, ``:first`` or ``:last``.

    ``weight`` and ``act`` (output) and ``input`` (the tensors the layer reads) hold the fields to change.
    """

    match: str
    weight: dict[str, Any] | None = None
    act: dict[str, Any] | None = None
    input: dict[str, Any] | None = None

    def matches(self, name: str, first: str, last: str) -> bool:
        """Say whether a weight layer or any other node of this name is meant."""
        if self.match in (FIRST, LAST):
            return name == (first if self.match == FIRST else last)
        return fnmatch.fnmatchcase(name, self.match)


@dataclass(frozen=True)
class QuantConfig:
    """The formats of a recipe. ``table`` is the input format of table activations (hard-swish, sigmoid, ...).

    ``read`` is the format of what a layer with a weight multiplies. A tensor that others read too (a residual sum, a
    pool) keeps ``act`` for them and is requantized for the layers; publications on few bits leave such tensors in
    float. None: layers read what is there.
    """

    weight: Format = field(default_factory=lambda: Format(granularity="per_channel"))
    act: Format = field(default_factory=lambda: Format(symmetric=False))
    read: Format | None = None
    input: Format = field(default_factory=lambda: Format(symmetric=False))
    logits: Format = field(default_factory=lambda: Format(bits=16))
    table: Format = field(default_factory=lambda: Format(symmetric=False))
    overrides: tuple[Override, ...] = ()

    def __post_init__(self) -> None:
        """Activations have one scale per tensor: no integer kernel takes one per channel."""
        for name in ("act", "read", "input", "logits", "table"):
            chosen = getattr(self, name)
            if chosen is not None and chosen.granularity != "per_tensor":
                raise ValueError(f"{name}.granularity must be per_tensor")
            if chosen is not None and chosen.mid_rise:
                raise ValueError(f"{name}.mid_rise must be false: {_NO_ZERO}")
        if self.weight.bits == 16:
            raise ValueError("weight.bits must be 2..8; 16 bit is an activation format")
        if self.table.bits > 8:
            raise ValueError("table.bits must be 2..8: a table has at most 256 entries")


def change(base: Format, override: Override, part: Literal["weight", "act", "input"], where: str) -> Format:
    """Return ``base`` with what an override says of a part changed.

    RecipeError for an unknown field, a value of another type, and a format that this part cannot have.
    """
    made = build(Format, asdict(base) | (getattr(override, part) or {}), f"{where}.{part}")
    if part == "weight" and made.bits > 8:
        raise RecipeError(f"{where}.weight.bits: must be 2..8; 16 bit is an activation format")
    if part != "weight" and made.granularity != "per_tensor":
        raise RecipeError(f"{where}.{part}.granularity: must be per_tensor; no integer kernel takes another")
    if part != "weight" and made.mid_rise:
        raise RecipeError(f"{where}.{part}.mid_rise: must be false: {_NO_ZERO}")
    return made


def check_ends(quant: QuantConfig) -> None:
    """Raise RecipeError for a weight format of the first or last layer that cannot be, without knowing the network.

    Only what every network would meet is refused: where an override names other layers by a pattern, nothing is.
    """
    told = [(i, o) for i, o in enumerate(quant.overrides) if o.weight is not None]
    if any(o.match not in (FIRST, LAST, "*") for _, o in told):
        return
    for end in (FIRST, LAST):
        fmt = quant.weight
        for i, override in told:
            if override.match in (end, "*"):
                fmt = change(fmt, override, "weight", f"quant.overrides[{i}]")
