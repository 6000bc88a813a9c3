"""The images of a training: crops, flips, cutout, and what is held out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from zoo import augment
from zoo.context import Images
from zoo.errors import DataError, RecipeError
from zoo.preprocess import Preprocess
from zoo.recipe import Step, make_step
from zoo.train.data import Data


def test_crops_are_windows_of_the_padded_picture() -> None:
    torch.manual_seed(0)
    pixels = torch.randint(1, 256, (64, 6, 6, 3), dtype=torch.uint8)
    draws = torch.rand(64, 3)
    out = augment.crop_and_flip(pixels, (6, 6), draws, 2)
    padded = nn.functional.pad(pixels.permute(0, 3, 1, 2), (2, 2, 2, 2)).permute(0, 2, 3, 1)
    for i, (a, b, flip) in enumerate(draws.tolist()):
        window = padded[i, int(a * 5) : int(a * 5) + 6, int(b * 5) : int(b * 5) + 6]
        assert torch.equal(out[i], window.flip(1) if flip < 0.5 else window)


def test_larger_pictures_are_cropped_without_padding() -> None:
    pixels = torch.full((32, 12, 12, 1), 7, dtype=torch.uint8)
    assert bool((augment.crop_and_flip(pixels, (8, 8), torch.rand(32, 3), 4) == 7).all())


def test_cutout_clears_one_square() -> None:
    x = torch.ones(2, 3, 8, 8)
    out = augment.cutout(x, torch.tensor([[0.5, 0.5], [0.0, 0.99]]), 4)
    assert int((out[0] == 0).sum()) == 3 * 16 and bool((out[0, :, 2:6, 2:6] == 0).all())
    assert int((out[1] == 0).sum()) == 3 * 2 * 3 and bool((out[1, :, :2, 5:] == 0).all())


def test_images_held_out_are_never_trained_on_nor_calibrated_with() -> None:
    pixels = torch.arange(100, dtype=torch.float32).reshape(100, 1, 1, 1)
    images = Images(pixels, labels=torch.arange(100))
    data = Data(images, torch.device("cpu"), holdout=30, augment=False, cutout=0)
    held = {int(v) for x, _ in data.held_out() for v in x.flatten()}
    seen = {int(v) for v in data.batch(torch.arange(len(data)), torch.Generator())[0].flatten()}
    calibrated = {int(v) for x in images.batches(10, 70) for v in x.flatten()}
    assert len(held) == 30 and len(seen) == 70 and not held & (seen | calibrated)
    x, labels = data.batch(torch.arange(5), torch.Generator())
    assert torch.equal(x.flatten().long(), labels)
    with pytest.raises(DataError, match="holdout"):
        Data(images, torch.device("cpu"), holdout=99, augment=False, cutout=0)


def test_alternating_flips_show_each_image_from_both_sides_in_turn() -> None:
    pixels = torch.zeros(40, 1, 1, 2)
    pixels[..., 0] = 1.0
    data = Data(Images(pixels, labels=torch.arange(40) % 2), torch.device("cpu"), holdout=0, augment=True, cutout=0,
                alternate=True)  # fmt: skip
    everyone, generator = torch.arange(40), torch.Generator().manual_seed(0)
    epochs = [data.batch(everyone, generator, epoch)[0][:, 0, 0, 0] for epoch in range(3)]
    assert torch.equal(epochs[0], epochs[2]) and torch.equal(epochs[0], 1 - epochs[1])
    assert int(epochs[0].sum()) == 20
    assert 0 < int(epochs[0][::2].sum()) < 20, "no class is mirrored as a whole"
    with pytest.raises(RecipeError, match="flip is a part of augment"):
        make_step(Step("train", {"flip": "alternate", "augment": False}), "test")


def test_augmentation_of_uint8_images_normalises_like_evaluation() -> None:
    pixels = torch.full((8, 4, 4, 1), 100, dtype=torch.uint8).numpy()
    images = Images(pixels, Preprocess((4, 4), (50.0,), (10.0,)), torch.zeros(8, dtype=torch.int64))
    x = images.augmented(torch.arange(8), torch.rand(8, 3, generator=torch.Generator().manual_seed(0)), pad=0)
    assert torch.equal(x, images.at(slice(0, 8))) and float(x[0, 0, 0, 0]) == 5.0
