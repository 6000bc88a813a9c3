"""Turn the Q-graph into the network that computes on integers only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from zoo.context import Context
from zoo.errors import suggest
from zoo.integer.layers import build_integer
from zoo.integer.program import extract
from zoo.quant.merge import merge_batchnorm
from zoo.resolve import load, names


@dataclass(frozen=True)
class Integerize:
    """``semantics``: a file of ``zoo/integer/semantics`` (docs/semantics.md): tflite, float32, ...

    A BatchNorm that was kept in its layer is merged first. ``fine_bias`` shifts weights of fewer than 8 bits to the top
    of a byte: their codes stay what they are, and biases lose as little as beside 8-bit weights.
    """

    takes: ClassVar = ("calibrated",)
    gives: ClassVar = "integer"

    semantics: str = "tflite"
    fine_bias: bool = False

    def __post_init__(self) -> None:
        """Refuse an unknown semantics."""
        known = names("zoo.integer.semantics")
        if self.semantics not in known:
            raise ValueError(f"semantics {self.semantics!r} is unknown{suggest(self.semantics, known)}")

    def __call__(self, net: fx.GraphModule, ctx: Context) -> fx.GraphModule:
        """Return the integer graph; its ``meta["program"]`` holds the Program it was built from."""
        shape = tuple(ctx.calibration.at(slice(0, 1)).shape[1:])
        rounding = load("zoo.integer.semantics", self.semantics, "integerize.semantics")
        program = extract(merge_batchnorm(net), shape, rounding, self.fine_bias)  # type: ignore[arg-type]
        integer = build_integer(program, self.semantics)
        integer.meta["program"], integer.meta["semantics"] = program, self.semantics
        return integer
