from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zoo.data import hf_parquet
from zoo.data._split import Split, fingerprint
from zoo.errors import DataError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TRAIN, TEST = "data/train-*.parquet", "data/test-*.parquet"


def png(value: int, mode: str = "RGB", side: int = 8) -> bytes:
    out = io.BytesIO()
    Image.new(mode, (side, side), value if mode == "L" else (value, 0, 0)).save(out, "PNG")
    return out.getvalue()


def bmp(value: int) -> dict[str, Any]:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(out, "BMP")
    return {"bytes": out.getvalue(), "path": "x.bmp"}


def write(path: Path, labels: Sequence[Any], first: int = 0, plain: bool = False, **changes: Any) -> Path:
    """Write a file whose row i is a picture of colour ``first + i``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures: list[Any] = [png(first + i) for i in range(len(labels))]
    if not plain:
        pictures = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(pictures)]
    for row, value in changes.get("pictures", {}).items():
        pictures[row] = value
    table = pa.table({changes.get("image", "image"): pictures, changes.get("label", "label"): list(labels)})
    names = changes.get("names", ["cat", "dog"])
    if names:
        features = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path, row_group_size=3)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", [0, 1, 0, 1, 0, 1, 0])
    write(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", [1, 1, 1, 0], first=100)
    write(tmp_path / "set" / "data" / "test-00000-of-00001.parquet", [1, 0, 1], first=200)
    return tmp_path / "set"


def read(role: Any, folder: Path, train: str = TRAIN, test: str = TEST, **args: Any) -> Split:
    return hf_parquet.read(role, train, test, folder=str(folder), **args)


def test_files_of_one_name_size_and_date_in_two_folders_are_two(tmp_path: Path) -> None:
    for part, first in (("train", 10), ("test", 20)):
        path = write(tmp_path / part / "0000.parquet", [0, 1], first, pictures={i: bmp(first + i) for i in range(2)})
        os.utime(path, ns=(0, 0))
    assert len({p.stat().st_size for p in tmp_path.glob("*/0000.parquet")}) == 1
    split = {part: read(part, tmp_path, "train/*.parquet", "test/*.parquet") for part in ("train", "test")}
    assert (colours(split["train"]), colours(split["test"])) == ([10, 11], [20, 21])


def colours(split: Split) -> list[int]:
    return [int(image[0, 0, 0]) for image in split.images]


def test_pixels_labels_and_classes(folder: Path) -> None:
    split = read("train", folder)
    assert colours(split) == [0, 1, 2, 3, 4, 5, 6, 100, 101, 102, 103]
    assert split.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0]
    assert split.classes == ("cat", "dog") and (split.name, split.subset) == ("hf_parquet-train", None)
    assert split.fingerprint == fingerprint(split.images, split.labels)
    assert read("calibration", folder).fingerprint == split.fingerprint
    assert colours(read("test", folder)) == [200, 201, 202]


def test_subset_is_balanced_nested_and_independent_of_row_groups(folder: Path, tmp_path: Path) -> None:
    four, six = read("train", folder, count=4), read("train", folder, count=6)
    assert set(colours(four)) < set(colours(six)) and len(six) == 6
    assert four.labels.sum() == 2 and six.labels.sum() == 3
    assert six.subset == "6 of 11, balanced by hash"
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        (tmp_path / "other" / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, tmp_path / "other" / "data" / path.name, row_group_size=100, compression="none")
    assert read("train", tmp_path / "other", count=6).fingerprint == six.fingerprint


def test_some_of_the_files_are_labelled_as_such(folder: Path) -> None:
    one = "data/train-00001-of-00002.parquet"
    assert read("train", folder, train=one).subset == "1 of 2 files"
    assert read("train", folder, train=one, count=2).subset == "2 of 4, balanced by hash, of 1 of 2 files"


def test_unpicked_row_groups_are_not_decoded(folder: Path) -> None:
    path = folder / "data" / "train-00000-of-00002.parquet"
    picked = colours(read("train", folder, train=f"data/{path.name}", count=2))
    bad = {i: {"bytes": b"no picture", "path": None} for i in range(7) if i not in picked}
    write(path, [0, 1, 0, 1, 0, 1, 0], pictures=bad)
    assert colours(read("train", folder, train=f"data/{path.name}", count=2)) == picked


def test_columns_are_configurable_and_pictures_may_be_plain_bytes(tmp_path: Path) -> None:
    write(tmp_path / "data" / "test-0.parquet", [1, 0], plain=True, image="img", label="fine", names=None)
    split = read("test", tmp_path, image="img", label="fine", labels=["a", "b"])
    assert colours(split) == [0, 1] and split.classes == ("a", "b")
    with pytest.raises(DataError, match=r"no column 'image' \(known: img, fine\)"):
        read("test", tmp_path, label="fine", labels=["a", "b"])
    with pytest.raises(DataError, match="names no classes of fine"):
        read("test", tmp_path, image="img", label="fine")
    assert len(read("test", tmp_path, image="img", label="fine", labels="cifar10").classes) == 10


def test_grey_pictures_become_colour_and_sizes_are_equal(folder: Path) -> None:
    path = folder / "data" / "test-00000-of-00001.parquet"
    write(path, [0, 1], pictures={1: {"bytes": png(77, "L", 16), "path": None}})
    split = read("test", folder, size=8)
    assert split.images.shape == (2, 8, 8, 3) and split.images[1].tolist() == [[[77] * 3] * 8] * 8
    assert read("test", folder, size=8, mode="L").images.shape == (2, 8, 8, 1)
    with pytest.raises(DataError, match="set the size"):
        read("test", folder)


@pytest.mark.parametrize(
    ("labels", "pictures", "message"),
    [
        ([0, 2], {}, "row 1 has label 2, the data set has classes 0..1"),
        ([0, -1], {}, "row 1 has label -1"),
        ([0, None], {}, "row 1: label must be a whole number, got None"),
        (["cat", "dog"], {}, "row 0: label must be a whole number, got 'cat'"),
        ([0, 1], {1: {"bytes": None, "path": "1.png"}}, "row 1: image holds no picture bytes"),
        ([0, 1], {1: None}, "row 1: image holds no picture bytes"),
        ([0, 1], {1: {"bytes": png(0)[:45], "path": None}}, "row 1: not a readable picture"),
        ([], {}, "holds no rows"),
    ],
    ids=["label large", "label negative", "label null", "label text", "path only", "null", "cut", "empty"],
)
def test_bad_rows_are_refused(folder: Path, labels: list[Any], pictures: dict[int, Any], message: str) -> None:
    write(folder / "data" / "test-00000-of-00001.parquet", labels, pictures=pictures)
    with pytest.raises(DataError, match=message):
        read("test", folder)


def test_fewer_classes_than_a_cached_file_has(folder: Path) -> None:
    assert len(read("test", folder, labels=["cat", "dog"])) == 3
    with pytest.raises(DataError, match=r"row 0 has label 1, the data set has classes 0\.\.0"):
        read("test", folder, labels=["cat"])


def test_bad_files_are_refused(folder: Path) -> None:
    path = folder / "data" / "test-00000-of-00001.parquet"
    good = path.read_bytes()
    for data in (b"", b"no parquet", good[: len(good) // 2]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet: not readable as parquet"):
            read("test", folder)
    path.write_bytes(good[:4] + b"\xff" * 200 + good[204:])
    with pytest.raises(DataError, match=r"test-00000-of-00001\.parquet"):
        read("test", folder)


def test_missing_data(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent: no such folder"):
        read("test", tmp_path / "absent")
    with pytest.raises(DataError, match=r"no file matches 'data/none-\*.parquet'"):
        read("test", folder, test="data/none-*.parquet")
    with pytest.raises(DataError, match="12 images asked for, it has 11"):
        read("train", folder, count=12)
    for pattern in ("", "../*.parquet", "/etc/*"):
        with pytest.raises(DataError, match="must be a file pattern"):
            read("test", folder, test=pattern)


@pytest.mark.parametrize("role", ["train", "test"])
def test_calibration_must_not_see_test_files(folder: Path, role: str) -> None:
    with pytest.raises(DataError, match="must not see test pictures"):
        read(role, folder, train="data/*.parquet")


def test_where_the_files_are_must_be_clear(folder: Path) -> None:
    for args in ({}, {"folder": str(folder), "repo_id": "org/set", "revision": COMMIT}):
        with pytest.raises(DataError, match="set either folder or repo_id"):
            hf_parquet.read("test", TRAIN, TEST, **args)
    for revision in (None, "main", COMMIT[:7]):
        with pytest.raises(DataError, match="needs a commit hash of 40 hex digits"):
            hf_parquet.read("test", TRAIN, TEST, repo_id="org/set", revision=revision)


def test_hub_is_asked_for_the_commit_and_the_files_of_the_role(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def snapshot(repo_id: str, **args: Any) -> str:
        asked.append((repo_id, args))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    split = hf_parquet.read("test", TRAIN, TEST, repo_id="org/set", revision=COMMIT)
    assert colours(split) == [200, 201, 202]
    assert asked == [("org/set", {"repo_type": "dataset", "revision": COMMIT, "allow_patterns": [TEST]})]


def test_no_network_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise ConnectionError("no route to host\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataError, match=r"^hub org/set: no download \(ConnectionError: no route to host\); .*$"):
        hf_parquet.read("test", TRAIN, TEST, repo_id="org/set", revision=COMMIT)


def test_decoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read("test", folder, size=8)

    def fail(*_: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(hf_parquet, "parquet_rows", fail)
    again = read("test", folder, size=8)
    assert again.fingerprint == first.fingerprint
    np.testing.assert_array_equal(again.images, first.images)
