"""Which data set of the hub a card names: by the whole name, for many names begin with another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from zoo.artifact import checkpoint
from zoo.hub.names import Address
from zoo.hub.publish import _facts
from zoo.hub.rescore import recipe_of

CIFAR10, IMAGENET, FASHION = "uoft-cs/cifar10", "ILSVRC/imagenet-1k", "zalando-datasets/fashion_mnist"
# the first four readers' own names: cifar10, held_out, imagenet_subset, fashion_embedded
OURS = {
    "cifar10-test": CIFAR10, "cifar10-train-held-out": CIFAR10, "imagenet-val1000": IMAGENET,
    "fashion-mnist-5k-test": FASHION, "imagenet-test": IMAGENET, "fashion-mnist-test": FASHION, "cifar10": CIFAR10,
}  # fmt: skip
OTHERS = [
    "cifar100-test", "cifar10-c-test", "cifar10.1-test", "imagenette-test", "imagenetv2-test", "imagenet-a-test",
    "imagenet-sketch-val", "imagenet21k-train-held-out", "tiny-imagenet-test", "fashion-mnist-corrupted-test",
    "fake-test", "flowers-test",
]  # fmt: skip


def named(source: Path, data: str) -> tuple[str, ...]:
    read = checkpoint.read(source)
    read = replace(read, metrics=read.metrics | {"data": read.metrics["data"] | {"name": data}})
    found: tuple[str, ...] = _facts(Address("org/net"), recipe_of(read, source), read, None)["datasets"]
    return found


@pytest.mark.parametrize("data", OURS)
def test_a_data_set_is_named_whatever_its_split(data: str, small: dict[str, Path]) -> None:
    assert named(small["first"], data) == (OURS[data],)


@pytest.mark.parametrize("data", OTHERS)
def test_a_data_set_whose_name_only_begins_like_another_is_not_taken_for_it(data: str, small: dict[str, Path]) -> None:
    assert named(small["first"], data) == ()
