from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from zoo.data import DataConfig, Split, load_split, require_apart
from zoo.data._split import fingerprint
from zoo.errors import DataError
from zoo.paths import recipes_dir
from zoo.recipe_file import read_recipe
from zoo.resolve import build


def split(name: str, seeds: list[int]) -> Split:
    images = np.stack([np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8) for seed in seeds])
    labels = np.zeros(len(seeds), np.int64)
    return Split(name, images, labels, fingerprint(images, labels), None, ("one",))


def test_a_test_image_among_those_given_is_found() -> None:
    given = split("toy-train", [1, 2, 3])
    require_apart(given, split("toy-test", [4, 5]))
    near = split("toy-test", [4, 2])
    near.images[1, 0, 0, 0] ^= 1
    require_apart(given, near)
    with pytest.raises(DataError, match="toy-test: 2 of its 3 images are among the 3 of toy-train too, number 1 "):
        require_apart(given, split("toy-test", [4, 2, 1]))


def test_a_picture_in_both_folders_is_found(pictures: Callable[..., Path]) -> None:
    root = pictures({"train/cat": 2, "train/dog": 2, "val/cat": 1, "val/dog": 1})
    (root / "val/dog/0.png").write_bytes((root / "train/cat/1.png").read_bytes())
    config = DataConfig("pictures", "image_folder", {"root": str(root)})
    with pytest.raises(DataError, match="1 of its 2 images are among the 4 of image_folder-train too, number 1"):
        require_apart(load_split(config, "calibration"), load_split(config, "test"))


@pytest.mark.data
@pytest.mark.parametrize("name", ["cifar10", "cifar10_held_out", "fashion", "imagenet_val1000"])
def test_no_shipped_record_was_measured_on_images_that_it_was_given(name: str) -> None:
    config = build(DataConfig, read_recipe(recipes_dir() / "data" / f"{name}.yaml"), "data")
    require_apart(load_split(config, "calibration"), load_split(config, "test"))
