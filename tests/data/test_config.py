from __future__ import annotations

import inspect

import numpy as np
import pytest
import yaml

from zoo.data import DataConfig, class_names, load_split
from zoo.data._split import fingerprint
from zoo.errors import DataError, RecipeError
from zoo.paths import recipes_dir
from zoo.resolve import build, load

RECIPES = sorted((recipes_dir() / "data").glob("*.yaml"))
FAKE = DataConfig("fake", "fake", {"n": 50, "size": 8})


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_every_shipped_data_set_fits_its_reader(path: object) -> None:
    fields = yaml.safe_load(path.read_text(encoding="utf-8"))  # type: ignore[attr-defined]
    config = build(DataConfig, fields, "data")
    assert config.name == path.stem and config.description  # type: ignore[attr-defined]
    reader = load("zoo.data", config.reader, "data.reader")
    inspect.signature(reader.read).bind("test", **config.args)


def test_whole_split() -> None:
    split = load_split(FAKE, "test")
    assert len(split) == 50 and split.subset == "synthetic"
    assert load_split(FAKE, "test", 50).fingerprint == split.fingerprint


def test_limit_draws_the_same_rows_each_time_and_keeps_their_order() -> None:
    whole, some, again = load_split(FAKE, "test"), load_split(FAKE, "test", 20), load_split(FAKE, "test", 20)
    assert some.fingerprint == again.fingerprint == fingerprint(some.images, some.labels)
    place = {image.tobytes(): i for i, image in enumerate(whole.images)}
    rows = [place[image.tobytes()] for image in some.images]
    assert rows == sorted(set(rows)) and len(rows) == 20
    np.testing.assert_array_equal(some.labels, whole.labels[rows])
    fewer = {image.tobytes() for image in load_split(FAKE, "test", 7).images}
    assert fewer < {image.tobytes() for image in some.images}


@pytest.mark.parametrize("limit", [51, 0, -3])
def test_impossible_limits_are_refused(limit: int) -> None:
    with pytest.raises(DataError, match=r"fake-test: .*images"):
        load_split(FAKE, "test", limit)


def test_unknown_reader_and_arguments() -> None:
    with pytest.raises(RecipeError, match="did you mean 'cifar10'"):
        load_split(DataConfig("x", "cifar100"), "test")
    with pytest.raises(RecipeError, match=r"data.args: .*'sizes'.*known: size, channels, classes, n, seed"):
        load_split(DataConfig("x", "fake", {"sizes": 3}), "test")
    with pytest.raises(RecipeError, match=r"data.args: missing a required argument: 'root'"):
        load_split(DataConfig("x", "image_folder"), "test")


@pytest.mark.parametrize(("name", "count"), [("cifar10", 10), ("fashion", 10), ("imagenet", 1000)])
def test_label_lists(name: str, count: int) -> None:
    assert len(class_names(name)) == count
    with pytest.raises(DataError, match=f"did you mean '{name}'"):
        class_names(name + "s")
    with pytest.raises(DataError, match="is unknown"):
        class_names("../labels/" + name)
