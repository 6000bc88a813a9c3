"""Fake-quantized layers whose values are, to the bit, those that the integers stand for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from zoo.integer.kept import Kept, Origin
from zoo.integer.layers import IntInput, build_integer
from zoo.integer.program import Node, Program
from zoo.quant import layers as q
from zoo.quant import ops
from zoo.quant.quantizer import Quantizer


class Exact(nn.Module):
    """A Q-node that rounds as its integer twin does, while nothing asks for a gradient.

    Float sums err in their last digits, and fixed-point multipliers round a little differently than the quotient of two
    scales. Either decides a code now and then, about one in a hundred thousand, and a deep network of few bits makes
    another class of it for some images. So the sums are taken on codes here. Gradients, training, changed parameters
    and quantizers that are switched off bring the float arithmetic back.
    """

    def follow(self, twin: nn.Module, steps: list[float], step: float) -> None:
        """Take the integer twin, the steps of the input tensors and of the output."""
        self.steps, self.step = steps, step
        self.origin = Origin(twin, self._own())

    def _own(self) -> list[Tensor]:
        return [t for name, t in self.state_dict(keep_vars=True).items() if not name.startswith("origin.")]

    def changed(self) -> bool:
        """Tell whether a parameter is another than the integers were made from, whichever way it was changed."""
        return self.origin.differs(self._own())

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the quantized output."""
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *self.parameters()))
        quantized = all(m.active for m in self.modules() if isinstance(m, Quantizer))
        if learns or self.training or not quantized or self.changed():
            result: Tensor = super().forward(*tensors)
            return result
        # the image alone lies on no grid yet
        pairs = zip(tensors, self.steps, strict=True) if self.steps else ()
        codes = [ops.grid_codes(x, step) for x, step in pairs] or tensors
        exact: Tensor = self.origin.twin(*codes)
        return exact * self.step


class ExactInput(Exact, q.QInput):
    """The image."""


class ExactConv2d(Exact, q.QConv2d):
    """Convolution."""


class ExactLinear(Exact, q.QLinear):
    """Fully connected layer."""


class ExactAdd(Exact, q.QAdd):
    """Residual addition."""


class ExactMul(Exact, q.QMul):
    """Product."""


class ExactCat(Exact, q.QCat):
    """Concatenation."""


class ExactRequantize(Exact, q.QRequantize):
    """Another scale."""


class ExactMean(Exact, q.QMean):
    """Global average pool."""


class ExactAvgPool(Exact, q.QAvgPool):
    """Average pool."""


class ExactTable(Exact, q.QTable):
    """Activation as a table."""


_KINDS: dict[type[Any], type[Exact]] = {kind.__mro__[2]: kind for kind in Exact.__subclasses__()}


def follow_integers(simulated: fx.GraphModule, program: Program, semantics: str) -> fx.GraphModule:
    """Make the Q-nodes of a simulated network equal the integer network's; QuantError where that cannot be exact."""
    integer = build_integer(program, semantics)
    for node in program.nodes:
        module = simulated.get_submodule(node.name)
        if node.out is not None and type(module) in _KINDS:
            module.__class__ = _KINDS[type(module)]
            assert isinstance(module, Exact)
            steps = [program.format_of(source).scale for source in node.inputs]
            module.follow(integer.get_submodule(node.name), steps, node.out.scale)
    return simulated


def altered(net: nn.Module, program: Program) -> list[str]:
    """Return the nodes whose module in a network, integer or fake-quantized, no longer holds what the program says."""
    modules = dict(net.named_modules())
    return [n.name for n in program.nodes if n.out is not None and not _as_made(modules.get(n.name), n, program)]


def _as_made(module: nn.Module | None, node: Node, program: Program) -> bool:
    if isinstance(module, Exact):
        return not module.changed()
    return isinstance(module, IntInput) or (isinstance(module, Kept) and module.holds(node, program))
