from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from zoo.errors import DataError
from zoo.preprocess import Preprocess

COLOUR = Preprocess((4, 4), (10.0, 20.0, 30.0), (2.0, 4.0, 8.0))
GREY = Preprocess((4, 4), (10.0,), (2.0,))
PICTURE = (np.arange(48) * 5 % 251).astype(np.uint8).reshape(4, 4, 3)


def by_hand(pixels: np.ndarray[Any, Any], of: Preprocess) -> np.ndarray[Any, Any]:
    return ((pixels.astype(np.float64) - of.mean) / of.std).transpose(2, 0, 1)


def test_array_and_pil_image_give_the_same_input() -> None:
    x = COLOUR(PICTURE)
    assert x.shape == (3, 4, 4) and x.dtype == torch.float32
    np.testing.assert_allclose(x.numpy(), by_hand(PICTURE, COLOUR), rtol=1e-6)
    assert torch.equal(COLOUR(Image.fromarray(PICTURE)), x)


def test_batch_equals_single_pictures() -> None:
    images = np.stack([PICTURE, PICTURE[::-1], 255 - PICTURE])
    assert torch.equal(COLOUR.batch(images), torch.stack([COLOUR(i) for i in images]))


def test_input_is_not_written_to() -> None:
    picture = PICTURE.copy()
    picture.setflags(write=False)
    COLOUR(picture)
    COLOUR.batch(picture[None])
    np.testing.assert_array_equal(picture, PICTURE)


def test_views_and_strides_do_not_matter() -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, ::2] = PICTURE
    assert torch.equal(COLOUR(wide[:, ::2]), COLOUR(PICTURE))
    assert torch.equal(COLOUR(np.asfortranarray(PICTURE)), COLOUR(PICTURE))


@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 1)])
def test_grey_array_is_widened(shape: tuple[int, ...]) -> None:
    grey = PICTURE[:, :, 0]
    expected = by_hand(np.dstack([grey] * 3), COLOUR)
    np.testing.assert_allclose(COLOUR(grey.reshape(shape)).numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(GREY(grey.reshape(shape)).numpy(), by_hand(grey[..., None], GREY), rtol=1e-6)


def test_colour_is_reduced_where_the_network_is_grey() -> None:
    flat = np.full((4, 4, 3), 90, np.uint8)
    assert GREY(flat).tolist() == [[[40.0] * 4] * 4]
    luma = np.rint(PICTURE @ np.array([0.299, 0.587, 0.114]))
    assert np.abs(GREY.pixels(PICTURE)[..., 0].astype(float) - luma).max() <= 1


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "1"])
def test_every_eight_bit_mode_of_pil(mode: str) -> None:
    picture = Image.new("RGB", (4, 4), (255, 255, 255)).convert(mode)
    assert (COLOUR.pixels(picture) >= 254).all() and COLOUR.pixels(picture).shape == (4, 4, 3)
    assert GREY.pixels(picture).shape == (4, 4, 1)


def test_alpha_is_dropped() -> None:
    alpha = np.dstack([PICTURE, np.zeros((4, 4), np.uint8)])
    assert torch.equal(COLOUR(alpha), COLOUR(PICTURE))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_than_eight_bits_are_refused(mode: str) -> None:
    with pytest.raises(DataError, match=f"mode {mode} has more than 8 bits"):
        COLOUR(Image.new(mode, (4, 4)))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (PICTURE.astype(np.float32), "must be uint8 in 0..255, got float32"),
        (PICTURE.astype(np.int64), "got int64"),
        (PICTURE > 3, "got bool"),
        (np.zeros((3, 8, 8), np.uint8), r"must be \[H, W\] or \[H, W, 1\|3\|4\], got \[3, 8, 8\]"),
        (PICTURE[None], r"got \[1, 4, 4, 3\]"),
        (PICTURE[0, 0], r"got \[3\]"),
        (PICTURE[..., :2], r"got \[4, 4, 2\]"),
        (PICTURE[:0], "holds no pixels"),
        (Image.new("RGB", (0, 4)), "holds no pixels"),
        ("picture.png", "need a PIL image or a uint8 array, got str"),
        (b"bytes", "got bytes"),
        (None, "got NoneType"),
        (torch.zeros(4, 4, 3), "got Tensor"),
    ],
    ids=["float", "int64", "bool", "CHW", "batch", "row", "two channels", "empty", "empty PIL", "path", "bytes", "none",
         "tensor"],
)  # fmt: skip
def test_anything_else_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        COLOUR(value)


def test_a_file_cut_short_is_refused() -> None:
    out = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    image = Image.open(io.BytesIO(out.getvalue()[:2000]))
    with pytest.raises(DataError, match="not a readable picture"):
        COLOUR(image)


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.tuples(st.integers(1, 24), st.integers(1, 24)),
    st.none() | st.integers(1, 48),
    st.sampled_from(["nearest", "bilinear", "bicubic"]),
)
def test_any_picture_fits_any_network(
    picture: tuple[int, int], size: tuple[int, int], resize: int | None, interpolation: str
) -> None:
    preprocess = Preprocess(size, (0.0,) * 3, (1.0,) * 3, resize, interpolation)
    pixels = preprocess.pixels(np.full((*picture, 3), 77, np.uint8))
    assert pixels.shape == (*size, 3) and (pixels == 77).all()


def test_resize_then_centre_crop_keeps_the_proportions() -> None:
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 25:35] = 255  # a sixth of the width, in the middle
    pixels = Preprocess((8, 8), resize=10, interpolation="nearest").pixels(wide)
    assert (pixels[:, 2:6] == 255).all() and (pixels[:, [0, 7]] == 0).all()
    # too small a resize for the crop: enlarged, not squeezed
    pixels = Preprocess((10, 20), resize=4, interpolation="nearest").pixels(wide)
    assert pixels.shape == (10, 20, 3) and (pixels[:, 8:12] == 255).all() and (pixels[:, [0, 19]] == 0).all()


def test_own_size_is_kept_without_resize() -> None:
    big = np.zeros((6, 10, 3), np.uint8)
    big[1:5, 3:7] = PICTURE
    np.testing.assert_array_equal(COLOUR.pixels(big), PICTURE)


def test_batch_crops_the_centre_and_refuses_what_is_too_small() -> None:
    big = np.zeros((1, 6, 10, 3), np.uint8)
    big[0, 1:5, 3:7] = PICTURE
    assert torch.equal(COLOUR.batch(big)[0], COLOUR(PICTURE))
    for bad in (big[:, :3], big[..., :1], big[0]):
        with pytest.raises(DataError, match="choose a data set of that size"):
            COLOUR.batch(bad)


def test_fields_survive_json() -> None:
    preprocess = Preprocess((96, 128), (1.0,), (2.0,), 100, "bicubic")
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess


@pytest.mark.parametrize(
    "fields",
    [
        {"interpolation": "lanczos"}, {"mean": [0.0, 0.0]}, {"std": [0.0, 1.0, 1.0]}, {"std": [float("nan"), 1.0, 1.0]},
        {"mean": [float("inf"), 0.0, 0.0]}, {"size": [224]}, {"size": [0, 4]}, {"resize": 0}, {"crop": 3},
    ],
    ids=str,
)  # fmt: skip
def test_impossible_fields_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"^preprocess"):
        Preprocess.from_dict(fields)
