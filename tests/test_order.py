"""Steps in an order that cannot work are told before any of them runs, and those alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx

from tests.networks import SIZE, config, images, small_resnet
from zoo.compose import compose, names
from zoo.context import Context, Images
from zoo.errors import RecipeError, ZooError
from zoo.graph.trace import trace
from zoo.recipe import Recipe, Step, make_step
from zoo.resolve import names as modules
from zoo.run import main

FIELDS: dict[str, dict[str, Any]] = {"change_bits": {"old": 4, "new": 2}}
STAGES: dict[str, list[str]] = {
    "float": ["fold_batchnorm"],
    "quantized": ["fold_batchnorm", "quantize"],
    "calibrated": ["fold_batchnorm", "quantize", "calibrate"],
    "integer": ["fold_batchnorm", "quantize", "calibrate", "integerize"],
}


def step(name: str) -> Any:
    return make_step(Step(name, FIELDS.get(name, {})), "steps")


def parsed(*steps: str) -> Recipe:
    fields = compose(["recipe=resnet8_fashion_w4a4"])
    return Recipe.parse(fields | {"steps": [{name: FIELDS.get(name, {})} for name in steps]})


@pytest.mark.parametrize("name", modules("zoo.steps"))
def test_each_step_says_where_it_may_stand_and_is_refused_elsewhere(name: str) -> None:
    """By the recipe, and where it is run all the same, by the step itself."""
    takes = step(name).takes
    assert takes and set(takes) <= {"float", "quantized", "calibrated"}
    for stage, before in STAGES.items():
        if stage in takes:
            assert [s.name for s in parsed(*before, name).steps] == [*before, name]
            continue
        with pytest.raises(
            RecipeError, match=rf"^recipe\.steps\[{len(before)}\]: {name} stands where the graph is {stage}; put"
        ):
            parsed(*before, name)
        torch.manual_seed(0)
        context = Context(config(4, 8), Images(images(16)), trace(small_resnet(), torch.zeros(1, 3, SIZE, SIZE)))
        net: fx.GraphModule = context.parent
        for earlier in before:
            net = step(earlier)(net, context)
        with pytest.raises(ZooError):
            step(name)(net, context)


@pytest.mark.parametrize("name", names())
def test_the_steps_of_every_recipe_can_follow_each_other(name: str) -> None:
    assert Recipe.parse(compose([f"recipe={name}"])).name == name


def test_check_tells_of_a_wrong_order(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(
            [
                "recipe=resnet8_fashion_w8a8",
                "steps=[fold_batchnorm,quantize,calibrate,integerize,correct_bias]",
                "check=true",
            ]
        )
        == 2
    )
    message = "recipe.steps[4]: correct_bias stands where the graph is integer; put it between calibrate and integerize"
    assert message in capsys.readouterr().err


def test_check_tells_of_a_wrong_place_to_publish_to(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["hub.repo=me/mine"], "hub.repo: nothing is published without hub.publish=true"),
        (["hub.publish=true", "hub.rep=me/mine"], "hub: field 'rep' is unknown"),
    ):
        assert main(["recipe=resnet8_fashion_w8a8", *arguments, "check=true"]) == 2
        assert message in capsys.readouterr().err
