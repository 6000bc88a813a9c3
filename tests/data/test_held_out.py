"""Images held out of a training split: never trained on, never those of the test split."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from zoo.data import DataConfig, fashion_embedded, find_reader, held_out, load_split
from zoo.data._split import fingerprint
from zoo.errors import DataError, RecipeError

ARGS = {"reader": "fashion_embedded", "count": 500}


def rows(images: np.ndarray) -> set[bytes]:  # type: ignore[type-arg]
    return {image.tobytes() for image in images}


def test_the_parts_are_the_training_split_and_share_nothing() -> None:
    whole = fashion_embedded.read("train")
    test, train = held_out.read("test", **ARGS), held_out.read("train", **ARGS)
    assert len(test) == 500 and len(train) == len(whole) - 500
    assert rows(test.images) | rows(train.images) == rows(whole.images)
    assert not rows(test.images) & rows(train.images)
    assert not rows(test.images) & rows(fashion_embedded.read("test").images)
    for split in (test, train):
        assert split.fingerprint == fingerprint(split.images, split.labels) and not split.images.flags.writeable
    assert "held out" in str(test.subset) and test.name == f"{whole.name}-held-out"
    # labels go with their images
    label = {image.tobytes(): int(k) for image, k in zip(whole.images, whole.labels, strict=True)}
    assert all(label[i.tobytes()] == k for i, k in zip(test.images, test.labels, strict=True))


def test_calibration_images_are_not_held_out() -> None:
    config = DataConfig("x", "held_out", ARGS)
    assert not rows(load_split(config, "calibration").images) & rows(load_split(config, "test").images)


@pytest.mark.parametrize("count", [0, -1, 10**6, 2.5, True])
def test_a_count_that_leaves_nothing_is_refused(count: object) -> None:
    with pytest.raises(DataError, match=r"data\.args\.count: must be from 1 to "):
        held_out.read("test", "fashion_embedded", count)  # type: ignore[arg-type]


def test_a_part_of_a_part_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fashion_embedded.read("train")
    part = dataclasses.replace(whole, subset="a part")
    monkeypatch.setattr(fashion_embedded, "read", lambda role: part)
    assert str(held_out.read("test", **ARGS).subset).endswith("training images, held out, of a part")


def test_another_reader_is_needed() -> None:
    with pytest.raises(DataError, match="not of itself"):
        held_out.read("test", "held_out", 5)
    with pytest.raises(RecipeError, match="unknown"):
        load_split(DataConfig("x", "held_out", {"reader": "fashion_embeded", "count": 5}), "test")
    with pytest.raises(RecipeError, match=r"data\.args: .*'size_' \(known: size, "):
        load_split(DataConfig("x", "held_out", {"reader": "fake", "count": 5, "args": {"size_": 8}}), "test")


@pytest.mark.parametrize("args", [{"reader": 5}, {"reader": ["fake"]}, {"reader": "fake", "args": [1]}])
def test_wrong_types_are_refused_before_reading(args: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"data\.args: reader must be a name and args a mapping, got "):
        find_reader(DataConfig("x", "held_out", {"count": 5, **args}))
