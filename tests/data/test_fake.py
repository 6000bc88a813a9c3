from __future__ import annotations

import numpy as np
import pytest

from zoo.data import DataConfig, fake, load_split
from zoo.data._split import fingerprint
from zoo.errors import DataError


def test_every_call_gives_the_same_images_and_says_synthetic() -> None:
    one, two = fake.read("test", n=40), fake.read("test", n=40)
    assert one.fingerprint == two.fingerprint == fingerprint(two.images, two.labels)
    assert one.subset == "synthetic" and one.name == "fake-test"
    assert not one.images.flags.writeable
    limited = load_split(DataConfig("fake", "fake", {"n": 40}), "test", 10)
    assert limited.subset == "10 of 40, fixed shuffle, of synthetic"


def test_splits_and_seeds_differ() -> None:
    assert fake.read("train").fingerprint == fake.read("calibration").fingerprint
    assert (
        len({fake.read("train").fingerprint, fake.read("test").fingerprint, fake.read("test", seed=1).fingerprint}) == 3
    )


@pytest.mark.parametrize(("size", "channels", "classes", "n"), [(1, 1, 1, 1), (7, 3, 4, 9), (32, 1, 10, 20)])
def test_shape_and_labels(size: int, channels: int, classes: int, n: int) -> None:
    split = fake.read("test", size, channels, classes, n)
    assert split.images.shape == (n, size, size, channels) and split.images.dtype == np.uint8
    assert split.labels.tolist() == [i % classes for i in range(n)]
    assert len(split.classes) == classes


def test_classes_can_be_told_apart_across_splits() -> None:
    train, test = fake.read("train", n=200), fake.read("test", n=200)
    means = np.stack([train.images[train.labels == c].mean(axis=0) for c in range(10)])
    distance = ((test.images[:, None].astype(float) - means) ** 2).sum(axis=(2, 3, 4))
    assert (distance.argmin(axis=1) == test.labels).all()


@pytest.mark.parametrize("args", [{"size": 0}, {"n": 1.5}, {"classes": True}, {"channels": 2}, {"seed": -1}])
def test_bad_settings(args: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"^data.args.{next(iter(args))}: "):
        fake.read("test", **args)  # type: ignore[arg-type]
