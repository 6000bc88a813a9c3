"""Small ImageNet-1k subsets of a mirror: val1000 for testing, calib1000 (training images) for calibration."""

from __future__ import annotations

from zoo.data._cache import cached
from zoo.data._config import Role
from zoo.data._labels import class_names
from zoo.data._sources import mirror, parquet_count, parquet_rows, stamp
from zoo.data._split import Split
from zoo.errors import DataError


def read(role: Role, test: str = "val1000", calibration: str = "calib1000") -> Split:
    """Return ``imagenet-val1000`` (227x227, as stored) or ``imagenet-calib1000`` (short side 256, centre square)."""
    name = test if role == "test" else calibration
    folder = mirror("data/imagenet")
    files = sorted(folder.glob(f"{name}-*.parquet")) if folder is not None else []
    if not files:
        raise DataError(
            f"imagenet-{name}: no mirror holds it; set ZOO_MIRROR to a folder with data/imagenet/{name}-*.parquet, or "
            "use data=imagenet_folder with your own copy of ImageNet"
        )
    side = 227 if role == "test" else 256
    pixels, labels, digest = cached(
        {"imagenet": stamp(files), "side": side}, parquet_count(files), (side, side, 3),
        lambda: parquet_rows(files, "image", "label", side), f"imagenet-{name}", 1000,
    )  # fmt: skip
    return Split(f"imagenet-{name}", pixels, labels, digest, f"{name}, a small easy subset", class_names("imagenet"))
