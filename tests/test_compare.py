"""What ``zoo.compare`` says of two networks, against counting by hand and against the records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import zoo
from zoo.data import DataConfig, load_split
from zoo.errors import DataError, GraphError
from zoo.paths import results_dir
from zoo.preprocess import Preprocess
from zoo.recipe_file import read_recipe
from zoo.resolve import build
from zoo.results import paired_interval, read_record
from zoo.weights import ModelConfig, build_model, load_weights


class Says(nn.Module):
    """A network that says the class in the first pixel, another one where the number in the second is small."""

    def __init__(self, shift: int = 0, until: int = 0, classes: int = 4) -> None:
        super().__init__()
        self.shift, self.until, self.classes, self.drop = shift, until, classes, nn.Dropout(0.9)

    def forward(self, x: Tensor) -> Tensor:
        said = x[:, 0, 0, 0].long()
        said = torch.where(x[:, 0, 0, 1] < self.until, (said + self.shift) % 4, said)
        return self.drop(nn.functional.one_hot(said, self.classes).float())


def batch(numbers: range) -> tuple[Tensor, Tensor]:
    """Return images that carry class and number, and their classes."""
    images = torch.zeros(len(numbers), 1, 2, 2)
    images[:, 0, 0, 0] = torch.tensor([n % 4 for n in numbers]).float()
    images[:, 0, 0, 1] = torch.tensor(list(numbers)).float()
    return images, torch.tensor([n % 4 for n in numbers], dtype=torch.int64)


def test_counts_are_those_of_a_hand() -> None:
    """Of 40 images one network takes 4 for others, the other 10, the first 4 among them for the same classes."""
    nets = Says(1, 4).train(), Says(1, 10).train()
    found = zoo.compare(*nets, [batch(range(0, 7)), list(batch(range(7, 40)))])
    assert (found.images, found.float_top1, found.top1, found.drop, found.agreement) == (40, 90.0, 75.0, 15.0, 85.0)
    right = [torch.tensor([n >= until for n in range(40)]).numpy() for until in (4, 10)]
    assert (found.drop, *found.drop_interval) == paired_interval(*right)
    assert all(module.training for net in nets for module in net.modules())
    low, high = found.drop_interval
    assert str(found) == (
        f"float 90.00 %, quantized 75.00 %: a drop of 15.00 points, 95 % interval [{low:.2f}, {high:.2f}], on 40 "
        "images; both choose the same class for 85.00 %"
    )


def test_a_record_says_the_same_of_the_same_images() -> None:
    folder = results_dir() / "resnet8_fashion_w4a4"
    record = read_record(folder / "fashion-mnist-5k-test-tflite.json")
    fields = read_recipe(folder / "checkpoint" / "recipe.yaml")
    model = build(ModelConfig, fields["model"], "model")
    split = load_split(build(DataConfig, fields["data"], "data"), "test")
    preprocess = Preprocess.from_dict(dict(model.preprocess))
    loader = [
        (preprocess.batch(split.images[i : i + 500]), torch.as_tensor(split.labels[i : i + 500]))
        for i in range(0, len(split), 500)
    ]
    reference = build_model(model, load_weights(model)[0])
    found = zoo.compare(reference, zoo.load("resnet8_fashion_w4a4", integer=True), loader)
    assert (found.images, found.float_top1, found.top1) == (record.data.n, record.float_top1, record.top1)
    assert (found.drop, found.drop_interval) == (record.drop, record.drop_interval)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        (None, "test images: must be a loader of batches, got NoneType"),
        (
            batch(range(4))[0],
            r"a loader of batches, got float32 \[4, 1, 2, 2\]; put a single batch into a list",
        ),
        ([], "test images: the loader is empty"),
        ([batch(range(0))], "every batch is empty"),
        ([batch(range(4))[0]], "batch 0 must be images with labels"),
        ([batch(range(4)), (batch(range(4))[0], [0, 1, 2, 3])], "batch 1 must be images with labels"),
        ([(batch(range(4))[0], torch.ones(4))], "a tensor of whole numbers"),
        ([(batch(range(4))[0], torch.zeros(3, dtype=torch.int64))], r"has labels \[3\] for 4 images"),
        ([(batch(range(4))[0], torch.arange(4) + 1)], "has labels 1 to 4, the networks know classes 0 to 3"),
        ([(batch(range(4))[0].byte(), torch.arange(4))], r"must be a float tensor .*, got uint8 \[4, 1, 2, 2\]"),
        ([(batch(range(4))[0][0], torch.arange(4))], r"must be a float tensor .*, got float32 \[1, 2, 2\]"),
        ([(batch(range(4))[0] / 0, torch.arange(4))], "batch 0 holds NaN or infinity"),
    ],
)
def test_what_cannot_be_measured_is_refused(loader: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        zoo.compare(Says(), Says(), loader)


def test_what_is_no_network_is_refused() -> None:
    for nets in ((3, Says()), (Says(), "resnet8_w4a4")):
        with pytest.raises(GraphError, match=r"zoo\.compare: a network must be a torch\.nn\.Module, got (int|str)"):
            zoo.compare(*nets, [batch(range(4))])  # type: ignore[arg-type]


def test_networks_of_other_classes_are_refused_and_left_as_they_were() -> None:
    nets = Says().train(), Says(classes=5).eval()
    with pytest.raises(DataError, match=r"the networks give \[4, 4\] and \[4, 5\]"):
        zoo.compare(*nets, [batch(range(4))])
    assert nets[0].training and nets[0].drop.training and not nets[1].training
