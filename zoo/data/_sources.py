"""Where data files are looked for, and how a picture's bytes become pixels."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from zoo.errors import DataError


def mirror(relative: str) -> Path | None:
    """Return a folder or file of ``$ZOO_MIRROR``, else of ``../shared`` beside a checkout; None if it is not there."""
    named = os.environ.get("ZOO_MIRROR")
    root = Path(named) if named else Path(__file__).resolve().parents[3] / "shared"
    path = root / relative
    return path if path.exists() else None


def square(data: bytes | Path, side: int | None, mode: str, where: str) -> np.ndarray[Any, Any]:
    """Return the centre square ``[S, S, C]`` of a picture, its short side resized to ``side`` (None: its own)."""
    try:
        image = Image.open(io.BytesIO(data) if isinstance(data, bytes) else data).convert(mode)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{where}: not a readable picture ({error}); replace or remove it") from None
    short = min(image.size)
    if side is not None and short != side:
        ratio = side / short
        size = (max(side, round(image.width * ratio)), max(side, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling.BILINEAR)
        short = side
    left, top = (image.width - short) // 2, (image.height - short) // 2
    array = np.asarray(image.crop((left, top, left + short, top + short)), np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def parquet_rows(
    files: list[Path], image: str, label: str, side: int | None, mode: str = "RGB"
) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
    """Yield (pixels, label) of Hugging Face image parquet files, in file order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in files:
        try:
            table = pq.read_table(path, columns=[image, label])
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise DataError(f"{path}: not a parquet file with columns {image} and {label} ({error})") from None
        for i, row in enumerate(table.to_pylist()):
            if not isinstance(row[image], dict) or not isinstance(row[label], int):
                raise DataError(f"{path}: row {i}: needs {image}.bytes and an integer {label}")
            yield square(row[image]["bytes"], side, mode, f"{path}: row {i}"), row[label]


def parquet_count(files: list[Path]) -> int:
    """Return the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return sum(pq.read_metadata(path).num_rows for path in files)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{files[0].parent}: not readable as parquet ({error}); fetch the files again") from None


def stamp(files: list[Path]) -> list[list[Any]]:
    """Return name, size and modification time of files: what a cache entry was made from."""
    return [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files]
