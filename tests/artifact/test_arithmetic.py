"""The arithmetic that a checkpoint names, another one, and scales that it cannot carry."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.networks import images
from zoo.artifact import checkpoint
from zoo.errors import ArtifactError

Damage = Callable[..., Path]


def test_scales_that_no_arithmetic_carries_are_refused(damage: Damage) -> None:
    read = checkpoint.read(damage(config=lambda c: c["nodes"][1]["out"].update(scale=2.0**-66)))
    with pytest.raises(ArtifactError, match="arithmetic tflite"):
        read.network(integer=True)


def test_scales_that_float32_cannot_carry_are_refused(damage: Damage) -> None:
    """A sum of a huge and a tiny scale: zero times infinity was a logit."""

    def change(config: Any) -> None:
        nodes = {node["name"]: node for node in config["nodes"]}
        nodes["add"]["out"]["scale"] = 2.0**-120
        nodes[nodes["add"]["inputs"][0]]["out"]["scale"] = 2.0**96
        config["semantics"] = "float32"

    held = checkpoint.read(damage(config=change))
    for integer in (True, False):
        with pytest.raises(ArtifactError, match=r"arithmetic float32: .*the factor inf is no float32"):
            held.network(integer=integer)


def test_logits_can_be_had_in_another_arithmetic(folder: Path) -> None:
    read = checkpoint.read(folder)
    other = read.network(integer=True, semantics="float32")
    with torch.no_grad():
        a, b = other(images(8)), read.network(integer=True)(images(8))
    # the codes of the two may differ by the rounding, not by more
    assert float((a - b).abs().max()) <= 0.2 * float(b.abs().max())
