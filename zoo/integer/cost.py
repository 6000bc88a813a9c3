"""What a Program costs wherever it runs: multiply-accumulates, and the bytes of activations that live at once."""

from __future__ import annotations

import math

from zoo.integer.program import Program
from zoo.integer.shapes import shapes


def macs(program: Program) -> int:
    """Return the multiply-accumulates of one image in convolutions and fully connected layers; padding counts."""
    found = shapes(program)
    total = 0
    for node in program.nodes:
        if node.weight is not None:
            weight = program.tensors[f"{node.name}.weight"]
            total += math.prod(found[node.name]) * math.prod(weight.shape[1:])
    return total


def activation_bytes(program: Program) -> int:
    """Return the most bytes of activations alive at once, for one image, in the order of the nodes.

    A tensor lives from its own node to the last one that reads it, and takes the 2, 4, 8 or 16 bits per element that
    its codes are packed to; a node's inputs and its output live together. ``flatten`` and ``slice`` are views. Engines
    that keep 4-bit codes in bytes need more, those that compute in place or in tiles less.
    """
    found = shapes(program)
    owner: dict[str, str] = {}
    last: dict[str, int] = {}
    for place, node in enumerate(program.nodes):
        view = node.op in ("flatten", "slice")
        owner[node.name] = owner[node.inputs[0]] if view else node.name
        for name in (node.name, *node.inputs):
            last[owner[name]] = place
    alive: dict[str, int] = {}
    most = 0
    for place, node in enumerate(program.nodes):
        if owner[node.name] == node.name:
            packed = next(width for width in (2, 4, 8, 16, 32) if program.format_of(node.name).bits <= width)
            alive[node.name] = -(-math.prod(found[node.name]) * packed // 8)
        most = max(most, sum(alive.values()))
        alive = {name: size for name, size in alive.items() if last[name] > place}
    return most
