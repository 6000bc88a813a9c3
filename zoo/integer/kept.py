"""Modules that follow the network to another device and keep the types that they were built with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zoo.errors import QuantError
from zoo.integer.program import Node, Program


class Kept(nn.Module):
    """Exact integers and the factors that round them: in another type they would be others, so none is taken."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Do what ``.to()``, ``.half()`` and their like ask for; QuantError, before anything is done, for another type.

        That includes ``.float()`` of a network: some of its integers need float64.
        """
        for name, held in self.named_buffers():
            asked = fn(held.new_empty(0)).dtype
            if asked != held.dtype:
                raise QuantError(
                    f"{type(self).__name__}.{name}: an integer network in {asked} would compute other integers; "
                    "move it without a type, or load the fake-quantized network (integer=False)"
                )
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def holds(self, node: Node, program: Program) -> bool:
        """Tell whether its integers are still those of the program: always, where it has none of its own."""
        return True


class Origin(nn.Module):
    """An integer layer, and the tensors of the fake-quantized layer that goes with it, as both were made.

    When that layer takes another type, this does not: so it can be told that the layer is another one now.
    """

    def __init__(self, twin: nn.Module, tensors: Sequence[Tensor]) -> None:
        """Copy the tensors."""
        super().__init__()
        self.twin, self.kinds = twin, [tensor.dtype for tensor in tensors]
        for number, tensor in enumerate(tensors):
            self.register_buffer(f"_{number}", tensor.detach().clone(), persistent=False)

    def differs(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these are other tensors than those copied, in type or value."""
        return len(tensors) != len(self.kinds) or any(
            tensor.dtype != kind or not torch.equal(tensor, self.get_buffer(f"_{number}"))
            for number, (tensor, kind) in enumerate(zip(tensors, self.kinds, strict=True))
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Do what ``.to()`` and its like ask for, the change of a type left out."""

        def moved(tensor: Tensor) -> Tensor:
            made = fn(tensor)
            return made if made.dtype == tensor.dtype else tensor.to(made.device)

        return super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
