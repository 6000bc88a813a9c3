from __future__ import annotations

import hashlib
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zoo.data import image_folder
from zoo.data._sources import square
from zoo.data._split import Split, fingerprint
from zoo.errors import DataError

Pictures = Callable[..., Path]
TRAIN = {"train/cat": 6, "train/dog": 4, "train/eel": 5}
TEST = {"val/cat": 2, "val/dog": 3, "val/eel": 1}


def colours(split: Split) -> list[tuple[int, ...]]:
    return [tuple(int(v) for v in image[0, 0]) for image in split.images]


def test_pixels_labels_and_classes(pictures: Pictures) -> None:
    root = pictures(TEST)
    split = image_folder.read("test", str(root))
    assert split.classes == ("cat", "dog", "eel")
    assert split.labels.tolist() == [0, 0, 1, 1, 1, 2]
    assert colours(split) == [(0, 0, 255), (0, 1, 254), (20, 0, 255), (20, 1, 254), (20, 2, 253), (40, 0, 255)]
    assert split.images.shape == (6, 8, 8, 3) and split.images.dtype == np.uint8
    assert split.fingerprint == fingerprint(split.images, split.labels)
    assert (split.name, split.subset) == ("image_folder-test", None)


def test_calibration_reads_the_training_folder_only(pictures: Pictures) -> None:
    root = pictures(TRAIN | TEST)
    calibration, train = (image_folder.read(role, str(root)) for role in ("calibration", "train"))
    test = image_folder.read("test", str(root))
    assert len(calibration) == 15 and calibration.fingerprint == train.fingerprint
    assert not set(colours(calibration)) & set(colours(test))
    shutil.rmtree(root / "train")
    with pytest.raises(DataError, match="train: no such folder"):
        image_folder.read("calibration", str(root))


@pytest.mark.parametrize(("train", "test"), [("val", "val"), (".", "val"), ("val", "val/cat"), ("x/../val", "val")])
def test_training_and_test_pictures_must_not_share_a_folder(pictures: Pictures, train: str, test: str) -> None:
    root = pictures(TEST)
    with pytest.raises(DataError, match="must not see test pictures"):
        image_folder.read("calibration", str(root), train=train, test=test)


def test_canonical_subset_is_the_same_for_everyone(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = image_folder.read("calibration", str(pictures(TRAIN, "mine")), count=7)
    assert mine.subset == "7 of 15, balanced by hash"
    assert sorted(np.bincount(mine.labels)) == [2, 2, 3]

    theirs = pictures(TRAIN, "theirs")
    for i, path in enumerate(sorted(theirs.rglob("*.png"), reverse=True)):
        os.utime(path, (i, i))
    (theirs / "train" / "cat" / "._0.png").write_bytes(b"what macOS leaves")
    (theirs / "train" / "cat" / "Thumbs.db").write_bytes(b"what Windows leaves")
    (theirs / "train" / "cat" / "list.txt").write_text("0.png")
    (theirs / "train" / "README.md").write_text("")
    (theirs / "train" / ".ipynb_checkpoints").mkdir()
    (theirs / "train" / "cat" / "thumbnails").mkdir()
    shutil.copy(theirs / "train" / "cat" / "0.png", theirs / "train" / "cat" / "thumbnails" / "9.png")
    real = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: Reversed(real(path)))
    again = image_folder.read("calibration", str(theirs), count=7)
    assert again.fingerprint == mine.fingerprint
    assert again.subset == mine.subset


class Reversed:
    """A file system that lists its entries the other way round."""

    def __init__(self, entries: os.ScandirIterator[str]) -> None:  # type: ignore[name-defined]
        self.entries = sorted(entries, key=lambda e: e.name, reverse=True)

    def __enter__(self) -> object:
        return iter(self.entries)

    def __exit__(self, *_: object) -> None:
        pass


def test_canonical_subset_of_known_names_never_changes(pictures: Pictures) -> None:
    # by hand: sha256sum of "a/0.png", "a/1.png", ... sorted, the first two of each class
    split = image_folder.read("train", str(pictures({"train/a": 5, "train/b": 5})), count=4)
    assert [(int(label), int(c[1])) for label, c in zip(split.labels, colours(split), strict=True)] == [
        (0, 0),
        (0, 2),
        (1, 0),
        (1, 3),
    ]


def test_decomposed_names_are_the_same_names(pictures: Pictures) -> None:
    counts = {"train/r\u00e9al": 3, "train/rz": 3}
    composed = image_folder.read("train", str(pictures(counts, "linux")), count=3)
    mac = {unicodedata.normalize("NFD", k): v for k, v in counts.items()}
    assert mac.keys() != counts.keys()
    root = pictures(counts, "mac")
    (root / "train" / "r\u00e9al").rename(root / "train" / unicodedata.normalize("NFD", "r\u00e9al"))
    decomposed = image_folder.read("train", str(root), count=3)
    assert decomposed.classes == composed.classes == ("rz", "r\u00e9al")
    assert decomposed.fingerprint == composed.fingerprint


def test_two_names_that_are_one_composed(pictures: Pictures) -> None:
    root = pictures({"val/r\u00e9al": 2, "val/" + unicodedata.normalize("NFD", "r\u00e9al"): 2, "val/a": 1})
    with pytest.raises(DataError, match="val: two names are 'r\u00e9al'"):
        image_folder.read("test", str(root))
    (root / "val" / unicodedata.normalize("NFD", "r\u00e9al")).rename(root / "val" / "b")
    for form in ("NFC", "NFD"):
        shutil.copy(root / "val" / "a" / "0.png", root / "val" / "a" / unicodedata.normalize(form, "\u00e9.png"))
    with pytest.raises(DataError, match=r"a: two names are '\u00e9\.png'"):
        image_folder.read("test", str(root))


def test_a_file_beside_a_folder_of_its_name(pictures: Pictures) -> None:
    root = pictures({"val/" + unicodedata.normalize("NFD", "r\u00e9al"): 2})
    (root / "val" / "r\u00e9al").write_text("a note")
    assert image_folder.read("test", str(root)).classes == ("r\u00e9al",)


@pytest.mark.parametrize(("source", "place"), [("val/cat", "val"), ("val/cat/0.png", "val/cat")])
def test_a_name_that_is_no_text(pictures: Pictures, source: str, place: str) -> None:
    root = pictures(TEST)
    copy = shutil.copytree if (root / source).is_dir() else shutil.copy
    try:
        copy(root / source, root / place / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.xfail("this file system takes UTF-8 alone")
    with pytest.raises(DataError, match=r"the name b'\\xff.png' is no UTF-8; rename it"):
        image_folder.read("test", str(root))


def test_names_of_what_is_ignored_may_be_anything(pictures: Pictures) -> None:
    root = pictures(TEST)
    wanted = image_folder.read("test", str(root)).fingerprint
    for place in ("val", "val/cat"):
        try:
            (root / place / os.fsdecode(b"note\xff.txt")).write_text("a note")
        except OSError:
            pytest.xfail("this file system takes UTF-8 alone")
    assert image_folder.read("test", str(root)).fingerprint == wanted


def test_a_link_to_itself(pictures: Pictures) -> None:
    root = pictures(TEST)
    (root / "val" / "cat" / "loop.png").symlink_to("loop.png")
    with pytest.raises(DataError, match="cat: cannot be listed"):
        image_folder.read("test", str(root))


def test_a_folder_that_may_not_be_listed(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(TEST)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(image_folder.os, "scandir", refuse)
    with pytest.raises(DataError, match="val: cannot be listed \\(Permission denied\\)"):
        image_folder.read("test", str(root))


def test_test_subset(pictures: Pictures) -> None:
    split = image_folder.read("test", str(pictures(TEST)), test_count=3)
    assert split.labels.tolist() == [0, 1, 2] and split.subset == "3 of 6, balanced by hash"


@pytest.mark.parametrize("count", [16, 0, "many"])
def test_too_few_pictures(pictures: Pictures, count: int) -> None:
    with pytest.raises(DataError, match=r"train: "):
        image_folder.read("train", str(pictures(TRAIN)), count=count)


def test_decoded_once(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    root = pictures(TEST)
    first = image_folder.read("test", str(root), size=8)
    decoded: list[object] = []
    real = image_folder.square
    monkeypatch.setattr(image_folder, "square", lambda *a: decoded.append(a) or real(*a))
    assert image_folder.read("test", str(root), size=8).fingerprint == first.fingerprint
    assert decoded == []
    Image.new("RGB", (8, 8)).save(root / "val" / "cat" / "0.png")
    os.utime(root / "val" / "cat" / "0.png", (1, 1))
    assert image_folder.read("test", str(root), size=8).fingerprint != first.fingerprint
    assert len(decoded) == 6


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def test_another_class_moves_the_labels_of_the_same_pictures(pictures: Pictures) -> None:
    root = pictures({f"{part}/{name}": 1 for part in ("train", "val") for name in ("cat", "dog", "eel")})
    before = image_folder.read("test", str(root), test_count=2)
    named = [before.classes[i] for i in before.labels]
    for part in ("train", "val"):
        # of a name whose hash is so high that it is not drawn
        (root / part / "ant").mkdir()
        name = next(name for name in (f"{i}.png" for i in range(10**6)) if _hash(f"ant/{name}") > "fff")
        shutil.copy(root / part / "eel" / "0.png", root / part / "ant" / name)
    after = image_folder.read("test", str(root), test_count=2)
    assert (after.images == before.images).all()
    assert [after.classes[i] for i in after.labels] == named


def test_two_folders_with_equal_names_sizes_and_dates_are_two_entries(tmp_path: Path) -> None:
    for root, colour in (("one", "red"), ("two", "blue")):
        (tmp_path / root / "val" / "x").mkdir(parents=True)
        path = tmp_path / root / "val" / "x" / "0.bmp"
        Image.new("RGB", (8, 8), colour).save(path)
        os.utime(path, (1, 1))
    one, two = (image_folder.read("test", str(tmp_path / root)) for root in ("one", "two"))
    assert colours(one) == [(255, 0, 0)] and colours(two) == [(0, 0, 255)]


def test_size_mode_and_centre(tmp_path: Path) -> None:
    (tmp_path / "val" / "x").mkdir(parents=True)
    wide = np.zeros((10, 30, 3), np.uint8)
    wide[:, 10:20] = 200
    Image.fromarray(wide).save(tmp_path / "val" / "x" / "0.png")
    split = image_folder.read("test", str(tmp_path))
    assert split.images.shape == (1, 10, 10, 3) and (split.images == 200).all()
    assert image_folder.read("test", str(tmp_path), size=20, mode="L").images.shape == (1, 20, 20, 1)


def test_grey_and_alpha_pictures_become_colour(tmp_path: Path) -> None:
    (tmp_path / "val" / "x").mkdir(parents=True)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "val" / "x" / "0.png")
    Image.fromarray(np.dstack([grey] * 3 + [grey])).save(tmp_path / "val" / "x" / "1.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "val" / "x" / "2.gif")
    split = image_folder.read("test", str(tmp_path))
    for image in split.images:
        np.testing.assert_array_equal(image, np.dstack([grey] * 3))


def test_pictures_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    (tmp_path / "val" / "x").mkdir(parents=True)
    for i in (8, 9):
        Image.new("RGB", (i, i)).save(tmp_path / "val" / "x" / f"{i}.png")
    with pytest.raises(DataError, match=r"set the size"):
        image_folder.read("test", str(tmp_path))
    assert len(image_folder.read("test", str(tmp_path), size=8)) == 2


def sixteen_bits(path: Path) -> None:
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)


def bomb(path: Path) -> None:
    Image.new("L", (100, 100)).save(path)


def postscript(path: Path) -> None:
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


BAD = {
    "empty": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("not a picture"),
    "cut": lambda p: p.write_bytes(p.read_bytes()[:-30]),
    "16 bits": sixteen_bits,
    "bomb": bomb,
    "postscript": postscript,
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD.keys())
def test_a_picture_that_cannot_be_read_is_named(
    pictures: Pictures, cache: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], object]
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    root = pictures(TEST)
    spoil(root / "val" / "dog" / "1.png")
    with pytest.raises(DataError, match=r"dog.1\.png: (not a readable picture|has more than 8 bits)"):
        image_folder.read("test", str(root))
    assert [p for p in (cache / "data").iterdir() if p.is_dir()] == []


@pytest.mark.filterwarnings("ignore")  # Pillow warns of odd tags
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF"])
def test_damaged_bytes_are_refused_or_decoded_never_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)
    rng = np.random.default_rng(0)
    path = tmp_path / "picture"
    Image.fromarray(rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)).save(path, kind)
    good = path.read_bytes()
    refused = 0
    for trial in range(150):
        data = bytearray(good)
        if trial % 3:
            for at in rng.integers(0, min(len(data), 200), 4):
                data[at] = rng.integers(256)
        else:
            del data[rng.integers(len(data)) :]
        try:
            pixels = square(bytes(data), 8, "RGB", "toy")
        except DataError:
            refused += 1
        else:
            assert pixels.shape == (8, 8, 3) and pixels.dtype == np.uint8
    assert refused > 10


def test_folders_that_do_not_fit(pictures: Pictures) -> None:
    root = pictures(TRAIN | TEST)
    (root / "train" / "bat").mkdir()
    with pytest.raises(DataError, match="'bat' is in only one of train and val"):
        image_folder.read("test", str(root))
    (root / "val" / "bat").mkdir()
    with pytest.raises(DataError, match="bat: holds no pictures"):
        image_folder.read("test", str(root))


def test_missing_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="val: no such folder"):
        image_folder.read("test", str(tmp_path))
    (tmp_path / "val").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    with pytest.raises(DataError, match="one folder per class"):
        image_folder.read("test", str(tmp_path))
    monkeypatch.delenv("ZOO_IMAGENET", raising=False)
    with pytest.raises(DataError, match="needs the environment variable ZOO_IMAGENET"):
        image_folder.read("test", "$ZOO_IMAGENET/x")


def test_root_may_name_a_variable(pictures: Pictures, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_IMAGENET", str(pictures(TEST)))
    assert len(image_folder.read("test", "$ZOO_IMAGENET")) == 6


@pytest.mark.parametrize("args", [{"size": 0}, {"size": "8"}, {"mode": "CMYK"}, {"interpolation": "lanczos"}])
def test_bad_settings(pictures: Pictures, args: dict[str, object]) -> None:
    with pytest.raises(DataError, match=f"^data.args.{next(iter(args))}: "):
        image_folder.read("test", str(pictures(TEST)), **args)  # type: ignore[arg-type]


def test_the_thousand_imagenet_folders_get_their_names_and_labels(tmp_path: Path) -> None:
    wnids = imagenet_wnids()
    data = image_bytes(tmp_path)
    for wnid in wnids:
        (tmp_path / "val" / wnid).mkdir(parents=True)
        (tmp_path / "val" / wnid / "ILSVRC2012_val_00000001.JPEG").write_bytes(data)
    split = image_folder.read("test", str(tmp_path), name="imagenet", size=8)
    assert split.labels.tolist() == list(range(1000))
    assert split.classes[0] == "tench" and split.classes[wnids.index("n02123045")].startswith("tabby")
    assert split.subset == "1000 of 50000"
    assert split.name == "imagenet-test"


def imagenet_wnids() -> list[str]:
    from timm.data import ImageNetInfo

    return list(ImageNetInfo("imagenet-1k").label_names())


def image_bytes(folder: Path) -> bytes:
    Image.new("RGB", (8, 8)).save(folder / "one.jpg")
    return (folder / "one.jpg").read_bytes()
