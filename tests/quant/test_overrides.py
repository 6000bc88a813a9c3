"""Overrides of formats: each changes what it names, and nothing that no integer network could have."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.networks import images, start
from tests.steps.test_steps import CHAIN, apply
from zoo.context import Context, Images
from zoo.errors import RecipeError
from zoo.graph.trace import trace
from zoo.quant.insert import insert_quantizers
from zoo.quant.spec import QuantConfig
from zoo.resolve import build


def config(**override: Any) -> QuantConfig:
    return build(QuantConfig, {"overrides": [{"match": "block1.conv1", **override}]}, "quant")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ({"weight": {"bits": 16}}, r"overrides\[0\]\.weight\.bits: must be 2\.\.8"),
        ({"weight": {"bits": 4.0}}, r"overrides\[0\]\.weight\.bits: expected int"),
        ({"weight": {"symmetric": "no"}}, r"overrides\[0\]\.weight\.symmetric: expected bool"),
        ({"weight": {"granularity": "per_chanel"}}, r"'per_chanel' is unknown; did you mean 'per_channel'"),
        ({"weight": {"scale": "pow_2"}}, r"'pow_2' is unknown; did you mean 'pow2'"),
        ({"weight": {"bit": 4}}, r"field 'bit' is unknown; did you mean 'bits'"),
        ({"act": {"bits": 4.0}}, r"overrides\[0\]\.act\.bits: expected int"),
        ({"act": {"granularity": "per_channel"}}, r"overrides\[0\]\.act\.granularity: must be per_tensor"),
        ({"input": {"granularity": "per_channel"}}, r"overrides\[0\]\.input\.granularity: must be per_tensor"),
    ],
)
def test_a_format_that_no_integer_network_has_is_refused(override: dict[str, Any], said: str) -> None:
    net, _ = start()
    with pytest.raises(RecipeError, match=said):
        insert_quantizers(net, config(**override), keep_norms=True)


def test_an_override_changes_its_parts_and_keeps_the_rest() -> None:
    net, _ = start()
    changed = insert_quantizers(net, config(weight={"bits": 5, "symmetric": False}, act={"bits": 6}), keep_norms=True)
    layer, other = changed.get_submodule("block1.conv1"), changed.get_submodule("block1.conv2")
    formats = layer.weight_quantizer.fmt, layer.out.fmt
    assert [(f.bits, f.symmetric, f.granularity) for f in formats] == [
        (5, False, "per_channel"),
        (6, True, "per_tensor"),
    ]
    assert (other.weight_quantizer.fmt.bits, other.out.fmt.bits) == (8, 8)


def test_each_part_of_an_override_must_change_something() -> None:
    net, _ = start()
    fields = {"act": {"bits": 8}, "read": {"bits": 4, "symmetric": False}}
    two = {"match": "block1.conv1", "weight": {"bits": 5}, "act": {"bits": 6}}
    with pytest.raises(RecipeError, match=r"overrides\[0\]\.act: match 'block1.conv1' matches nothing.*quant\.read"):
        insert_quantizers(net, build(QuantConfig, fields | {"overrides": [two]}, "quant"), keep_norms=True)
    image = {"match": ":first", "input": {"bits": 4}}
    with pytest.raises(RecipeError, match=r"\.input: match ':first' matches nothing.*the image .* quant\.input"):
        insert_quantizers(net, build(QuantConfig, {"overrides": [image]}, "quant"), keep_norms=True)


class _Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3)))
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        self.first = name

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.fc(self.flatten(self.pool(self.get_submodule(self.first)(x))))
        return found


def test_a_module_called_input_is_left_alone() -> None:
    torch.manual_seed(0)
    pictures = images()
    net = trace(_Named("input").eval(), pictures[:1])
    ctx = Context(QuantConfig(), Images(pictures), net)
    program = apply(net, ctx, *CHAIN, ("integerize", {})).meta["program"]
    assert [n.name for n in program.nodes[:2]] == ["input_", "input.0"]
