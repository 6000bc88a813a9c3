"""A node takes the tensors for which the documentation says what it computes, and no others that torch would take."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.integer.programs import Builder, record
from zoo.integer.layers import build_integer
from zoo.integer.shapes import shapes


def test_a_linear_layer_of_pictures_is_refused() -> None:
    """Torch would multiply their columns, and scale their channels."""
    b = Builder((3, 5, 7), 0)
    b.linear("fc", "x", (7, 3))
    b.flatten("flat", "fc")
    with pytest.raises(ValueError, match=r"fc: a linear layer takes \[N, features\], got \[1, 3, 5, 7\]"):
        shapes(b.program)


def test_channels_that_are_not_there_are_refused() -> None:
    """Torch would take those that are."""
    b = Builder((3, 4, 4), 0)
    b.slice("part", "x", 1, 3)
    b.slice("more", "part", 1, 3)
    with pytest.raises(ValueError, match="more: 2 channels have none before 3"):
        shapes(b.program)


@pytest.mark.parametrize("op", ["mul", "add"])
@pytest.mark.parametrize("swapped", [False, True])
def test_tensors_of_other_dimensions_have_no_product_and_no_sum(op: str, swapped: bool) -> None:
    """Torch would align the images of a batch with the rows or channels of a picture."""
    b = Builder((1, 4, 4), 0)
    b.conv("c", "x", (1, 2))
    b.flatten("flat", "x")
    b.linear("g", "flat", (16, 4))
    b.mul("m", *(("g", "c") if swapped else ("c", "g")))
    b.program.nodes[-1] = replace(b.program.nodes[-1], op=op)
    with pytest.raises(ValueError, match=r"m: cannot (add|multiply)"):
        shapes(b.program)


def test_dimensions_that_differ_have_no_product() -> None:
    b = Builder((3, 4, 4), 0)
    b.conv("a", "x", (3, 4))
    b.conv("b", "x", (3, 2))
    b.mul("m", "a", "b")
    with pytest.raises(ValueError, match=r"m: cannot multiply \[1, 4, 4, 4\] and \[1, 2, 4, 4\]"):
        shapes(b.program)


def test_gates_of_channels_positions_and_features_multiply_image_by_image() -> None:
    b = Builder((3, 4, 5), 0)
    b.conv("c", "x", (3, 6))
    b.mean("squeezed", "c")
    b.mul("channels", "c", "squeezed")
    b.conv("map", "x", (3, 1))
    b.mul("positions", "map", "channels")
    b.mean("pooled", "positions")
    b.flatten("flat", "pooled")
    b.linear("one", "flat", (6, 1))
    b.mul("features", "flat", "one")
    found = shapes(b.program)
    assert [found[n] for n in ("channels", "positions", "features")] == [(1, 6, 4, 5), (1, 6, 4, 5), (1, 6)]
    net, images = build_integer(b.program, "tflite"), b.image(3)
    together = record(net, images)
    for i in range(3):
        alone = record(net, images[i : i + 1])
        assert all(torch.equal(value, together[name][i : i + 1]) for name, value in alone.items())
