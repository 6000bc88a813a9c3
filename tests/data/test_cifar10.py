from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zoo.data import cifar10
from zoo.data._sources import mirror
from zoo.data._split import fingerprint
from zoo.errors import DataError


def batch(seed: int, count: int = 10_000) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), rng.integers(0, 10, count)


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The published layout: a label byte, then 1024 red, 1024 green and 1024 blue bytes, row by row."""
    rows = [
        bytes([label]) + b"".join(image[:, :, c].tobytes() for c in range(3))
        for image, label in zip(images, labels, strict=True)
    ]
    return b"".join(rows)


@pytest.fixture
def official(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that publishes an archive of some members at a local address, and has no mirror."""
    (tmp_path / "empty mirror").mkdir()
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path / "empty mirror"))

    def publish(members: dict[str, bytes]) -> Path:
        path = tmp_path / "cifar-10-binary.tar.gz"
        with tarfile.open(path, "w:gz", compresslevel=1) as tar:
            for name, data in members.items():
                info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        monkeypatch.setattr(cifar10, "URL", path.as_uri())
        monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
        return path

    return publish


def test_official_archive(official: Callable[..., Path], cache: Path) -> None:
    images, labels = batch(0)
    path = official({"test_batch.bin": binary(images, labels)})
    split = cifar10.read("test")
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert (split.name, split.subset) == ("cifar10-test", None) and split.classes[3] == "cat"
    assert split.fingerprint == fingerprint(images, labels)
    path.unlink()
    (cache / "downloads" / path.name).unlink()
    assert cifar10.read("test").fingerprint == split.fingerprint, "the decoded images need no archive"


def test_five_official_training_files_in_order(official: Callable[..., Path]) -> None:
    parts = [batch(i) for i in range(1, 6)]
    official({f"data_batch_{i}.bin": binary(*part) for i, part in reversed(list(enumerate(parts, 1)))})
    split = cifar10.read("calibration")
    assert split.name == "cifar10-train" and len(split) == 50_000
    for i, (images, labels) in enumerate(parts):
        np.testing.assert_array_equal(split.images[i * 10_000 : (i + 1) * 10_000], images)
        np.testing.assert_array_equal(split.labels[i * 10_000 : (i + 1) * 10_000], labels)


def test_altered_archive_is_refused(official: Callable[..., Path], cache: Path) -> None:
    path = official({"test_batch.bin": b""})
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(DataError, match="sha256 is"):
        cifar10.read("test")
    assert list((cache / "downloads").iterdir()) == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({}, "not the CIFAR-10 binary archive"),
        ({"data_batch_1.bin": b""}, "not the CIFAR-10 binary archive"),
        ({"test_batch.bin": b"x" * 3000}, "not the CIFAR-10 binary archive"),
        ({"test_batch.bin": bytes(3073 * 9)}, "9 rows, expected 10000"),
        ({"test_batch.bin": b"\x0a" + bytes(3072)}, "label 10, the data set has classes 0..9"),
    ],
    ids=["empty", "another file", "odd size", "too few", "label"],
)
def test_archive_of_something_else_is_refused(
    official: Callable[..., Path], members: dict[str, bytes], message: str
) -> None:
    official(members)
    with pytest.raises(DataError, match=message):
        cifar10.read("test")


def test_a_mirror_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path / "absent"))
    with pytest.raises(DataError, match=r"ZOO_MIRROR: .*absent' is no folder"):
        mirror("data/cifar10")


def test_no_archive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "empty mirror").mkdir()
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path / "empty mirror"))
    monkeypatch.setattr(cifar10, "URL", (tmp_path / "absent.tar.gz").as_uri())
    with pytest.raises(DataError, match=r"absent\.tar\.gz: no download \(.*\); go online, or set ZOO_MIRROR"):
        cifar10.read("test")


def test_mirror_is_read_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = batch(0, 12)
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path))
    monkeypatch.setattr(cifar10, "URL", "https://invalid.invalid")
    folder = tmp_path / "data" / "cifar10"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=r"cifar10: no test-\*.parquet"):
        cifar10.read("test")
    for i in (1, 0):
        rows = []
        for image in images[i * 6 : i * 6 + 6]:
            out = io.BytesIO()
            Image.fromarray(image).save(out, "PNG")
            rows.append({"bytes": out.getvalue(), "path": None})
        table = pa.table({"img": rows, "label": labels[i * 6 : i * 6 + 6]})
        pq.write_table(table, folder / f"test-0000{i}-of-00002.parquet")
    split = cifar10.read("test")
    np.testing.assert_array_equal(split.images, images)
    np.testing.assert_array_equal(split.labels, labels)
    assert split.subset == "12 of 10000"


@pytest.mark.data
@pytest.mark.parametrize(("role", "part"), [("test", "test"), ("calibration", "train")])
def test_real_mirror_has_the_fingerprint_it_states(monkeypatch: pytest.MonkeyPatch, role: str, part: str) -> None:
    monkeypatch.delenv("ZOO_MIRROR", raising=False)
    folder = mirror("data/cifar10")
    if folder is None:
        pytest.skip("needs ../shared/data/cifar10")
    stated = json.loads((folder / "meta.json").read_text())
    split = cifar10.read(role)  # type: ignore[arg-type]
    assert split.fingerprint == stated["splits"][part]["sha256_of_pixels_then_labels"]
    assert list(split.classes) == stated["classes"]
    assert len(split) == stated["splits"][part]["rows"]
