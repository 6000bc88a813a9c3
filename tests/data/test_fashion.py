from __future__ import annotations

import gzip
import hashlib
import importlib.util
import lzma
import struct
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from zoo.data import fashion_embedded
from zoo.data._split import fingerprint
from zoo.errors import DataError

real = lzma.compress
FOLDER = Path(fashion_embedded.__file__).parent / "fashion"


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fashion_build", FOLDER / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("role", "part"), [("test", "test"), ("train", "train"), ("calibration", "train")])
def test_five_thousand_balanced_images(role: str, part: str) -> None:
    split = fashion_embedded.read(role)  # type: ignore[arg-type]
    assert split.name == f"fashion-mnist-5k-{part}"
    assert split.images.shape == (5000, 28, 28, 1) and split.images.dtype == np.uint8
    assert np.bincount(split.labels).tolist() == [500] * 10
    assert split.subset == ("5000 of 10000" if part == "test" else "5000 of 60000")
    assert split.fingerprint == fingerprint(split.images, split.labels)


def test_the_first_images_are_the_published_ones() -> None:
    # The first labels of the original files, and no image in both parts.
    test, train = fashion_embedded.read("test"), fashion_embedded.read("train")
    assert test.labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert train.labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert not {i.tobytes() for i in test.images} & {i.tobytes() for i in train.images}


def test_altered_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_embedded, "_FOLDER", tmp_path)
    with pytest.raises(DataError, match=r"test\.xz: missing or altered; reinstall"):
        fashion_embedded.read("test")
    (tmp_path / "test.xz").write_bytes((FOLDER / "test.xz").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"test\.xz: missing or altered; reinstall"):
        fashion_embedded.read("test")


def test_build_script_makes_what_the_reader_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build = builder()
    rng = np.random.default_rng(0)
    expected = {}
    for part, prefix in build.PARTS.items():
        images = rng.integers(0, 256, (5600, 28, 28)).astype(np.uint8)
        labels = (np.arange(5600) % 10).astype(np.uint8)
        raw = {
            f"{prefix}-images-idx3-ubyte.gz": struct.pack(">IIII", 2051, 5600, 28, 28) + images.tobytes(),
            f"{prefix}-labels-idx1-ubyte.gz": struct.pack(">II", 2049, 5600) + labels.tobytes(),
        }
        for name, data in raw.items():
            (tmp_path / name).write_bytes(gzip.compress(data, 1))
            monkeypatch.setitem(build.ORIGINAL, name, hashlib.sha256(data).hexdigest())
        expected[part] = images[:5000, ..., None], labels[:5000]
    monkeypatch.setattr(build.lzma, "compress", lambda data, **_: real(data, preset=0))
    build.main(tmp_path, tmp_path)
    printed = {line.split()[0]: line.split()[2] for line in capsys.readouterr().out.splitlines()}
    monkeypatch.setattr(fashion_embedded, "_FOLDER", tmp_path)
    monkeypatch.setattr(fashion_embedded, "_SHA256", printed)
    for part, (images, labels) in expected.items():
        split = fashion_embedded.read(part)  # type: ignore[arg-type]
        np.testing.assert_array_equal(split.images, images)
        np.testing.assert_array_equal(split.labels, labels)


def test_build_script_refuses_other_files(tmp_path: Path) -> None:
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"something else"))
    with pytest.raises(SystemExit, match="not the file that Zalando published"):
        builder().main(tmp_path, tmp_path)


def test_licence_and_origin_lie_beside_the_data() -> None:
    assert "Copyright (c) 2017 Zalando SE" in (FOLDER / "LICENSE").read_text(encoding="utf-8")
    assert "first 500 of each class" in (FOLDER / "README.md").read_text(encoding="utf-8")
