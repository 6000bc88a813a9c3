from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from zoo.data import imagenet_subset
from zoo.data._sources import mirror
from zoo.errors import DataError


def write(path: Path, sides: list[tuple[int, int]], labels: list[int]) -> None:
    rows = []
    for i, size in enumerate(sides):
        out = io.BytesIO()
        Image.new("L" if i else "RGB", size, 60 if i else (60, 60, 60)).save(out, "PNG")
        rows.append({"bytes": out.getvalue(), "path": None})
    pq.write_table(pa.table({"image": rows, "label": labels}), path)


def test_sizes_names_and_subset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path))
    folder = tmp_path / "data" / "imagenet"
    folder.mkdir(parents=True)
    write(folder / "val1000-00000-of-00001.parquet", [(227, 227), (227, 227)], [5, 999])
    write(folder / "calib1000-00000-of-00001.parquet", [(300, 256), (100, 70)], [0, 1])
    test, calibration = imagenet_subset.read("test"), imagenet_subset.read("calibration")
    assert test.images.shape == (2, 227, 227, 3) and calibration.images.shape == (2, 256, 256, 3)
    assert (np.concatenate([calibration.images.ravel(), test.images.ravel()]) == 60).all()
    assert (test.name, calibration.name) == ("imagenet-val1000", "imagenet-calib1000")
    assert test.subset is not None and "subset" in test.subset
    write(folder / "val1000-00000-of-00001.parquet", [(227, 227)], [1000])
    with pytest.raises(DataError, match=r"label 1000, the data set has classes 0..999"):
        imagenet_subset.read("test")


def test_no_mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_MIRROR", str(tmp_path))
    with pytest.raises(DataError, match="imagenet-val1000: no mirror holds it; set ZOO_MIRROR"):
        imagenet_subset.read("test")


@pytest.mark.data
def test_real_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_MIRROR", raising=False)
    if mirror("data/imagenet") is None:
        pytest.skip("needs ../shared/data/imagenet")
    test, calibration = imagenet_subset.read("test"), imagenet_subset.read("calibration")
    assert len(test) == len(calibration) == 1000
    assert sorted(calibration.labels) == list(range(1000)), "one training image of each class"
