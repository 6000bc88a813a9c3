"""Where data files are looked for, and how a picture's bytes become pixels."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zoo.errors import DataError, suggest

# Closed, because Pillow hands some others (EPS) to programs outside. SyntaxError is what its PNG reader raises.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "GIF", "TIFF")
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, OverflowError, struct.error,
               zlib.error, Image.DecompressionBombError)  # fmt: skip
_COLOURS = {"RGB": 3, "L": 1}
_FILTERS = ("nearest", "bilinear", "bicubic")


def mirror(relative: str) -> Path | None:
    """Return a folder or file of ``$ZOO_MIRROR``, else of ``../shared`` beside a checkout; None if it is not there.

    Raises DataError where ``$ZOO_MIRROR`` is no folder: other images than the ones meant would be taken.
    """
    named = os.environ.get("ZOO_MIRROR")
    if named and not Path(named).is_dir():
        raise DataError(
            f"ZOO_MIRROR: {named!r} is no folder; set it to one, or leave it out for the official downloads"
        )
    root = Path(named) if named else Path(__file__).resolve().parents[3] / "shared"
    path = root / relative
    return path if path.exists() else None


def expand(path: str, where: str) -> Path:
    """Return a path with ``~`` and ``$NAME`` replaced; a variable that is not set raises DataError."""
    text = os.path.expanduser(os.path.expandvars(path))
    if "$" in text:
        name = text[text.index("$") :].split(os.sep)[0].strip("${}")
        raise DataError(f"{where}: {path!r} needs the environment variable {name}; set it, or set {where} to a folder")
    return Path(text)


def check_picture(size: int | None, mode: str, interpolation: str, where: str = "data.args") -> int:
    """Return the colour channels of ``mode``; a size, mode or interpolation that is not known raises DataError."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
        raise DataError(f"{where}.size: must be a positive number of pixels, got {size!r}")
    if mode not in _COLOURS:
        raise DataError(f"{where}.mode: {mode!r} is unknown{suggest(str(mode), _COLOURS)}")
    if interpolation not in _FILTERS:
        raise DataError(f"{where}.interpolation: {interpolation!r} is unknown{suggest(str(interpolation), _FILTERS)}")
    return _COLOURS[mode]


def square(
    data: bytes | Path, side: int | None, mode: str, where: str, interpolation: str = "bilinear"
) -> np.ndarray[Any, Any]:
    """Return the centre square ``[S, S, C]`` of a picture, its short side resized to ``side`` (None: its own).

    ``mode`` RGB or L: grey pictures are widened, coloured ones reduced, alpha is dropped, EXIF rotation is ignored (as
    torchvision does). Raises DataError for what is no readable picture of 8 bits per channel.
    """
    try:
        with Image.open(io.BytesIO(data) if isinstance(data, bytes) else data, formats=FORMATS) as source:
            if source.mode.startswith(("I", "F")):
                raise DataError(f"{where}: has more than 8 bits per channel (mode {source.mode}); convert it to 8 bits")
            image = source.convert(mode)
    except _UNREADABLE as error:
        raise DataError(f"{where}: not a readable picture ({error}); replace or remove it") from None
    short = min(image.size)
    if side is not None and short != side:
        ratio = side / short
        size = (max(side, round(image.width * ratio)), max(side, round(image.height * ratio)))
        image = image.resize(size, Image.Resampling[interpolation.upper()])
        short = side
    left, top = (image.width - short) // 2, (image.height - short) // 2
    array = np.asarray(image.crop((left, top, left + short, top + short)), np.uint8)
    return array[:, :, None] if array.ndim == 2 else array


def parquet_rows(
    files: Sequence[Path], image: str, label: str, side: int | None, mode: str = "RGB",
    rows: Sequence[int] | None = None, interpolation: str = "bilinear",
) -> Iterator[tuple[np.ndarray[Any, Any], int]]:  # fmt: skip
    """Yield (pixels, label) of Hugging Face image parquet files, in file order.

    ``rows`` counts through all files and picks some of them (None: all); row groups without any are not read. An
    image is a struct with ``bytes``, or the bytes themselves. Raises DataError, naming file and row.
    """
    import pyarrow as pa

    picked = None if rows is None else set(rows)
    first = 0
    for path in files:
        with _parquet(path, [image, label]) as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                here = range(first, first + count)
                first += count
                if picked is not None and picked.isdisjoint(here):
                    continue
                number = here.start
                try:
                    for batch in file.iter_batches(64, row_groups=[group], columns=[image, label]):
                        for value, target in zip(batch.column(image), batch.column(label), strict=True):
                            if picked is None or number in picked:
                                where = f"{path}: row {number}"
                                pixels = square(_bytes(value, where, image), side, mode, where, interpolation)
                                yield pixels, _label(target, where, label)
                            number += 1
                except (pa.ArrowException, OSError) as error:
                    raise DataError(f"{path}: row group {group} is damaged ({error}); fetch the file again") from None


def parquet_labels(files: Sequence[Path], label: str) -> list[int]:
    """Return the labels of all rows, in file order, without reading a picture."""
    import pyarrow as pa

    found: list[int] = []
    for path in files:
        with _parquet(path, [label]) as file:
            try:
                column = file.read(columns=[label]).column(label)
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{path}: column {label} is damaged ({error}); fetch the file again") from None
            found += [_label(value, f"{path}: row {i}", label) for i, value in enumerate(column)]
    return found


def parquet_count(files: Sequence[Path]) -> int:
    """Return the number of rows."""
    total = 0
    for path in files:
        with _parquet(path, []) as file:
            total += file.metadata.num_rows
    return total


def stamp(files: Sequence[Path]) -> list[list[Any]]:
    """Return path, size and modification time of files: what a cache entry was made from."""
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


def _parquet(path: Path, columns: list[str]) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as parquet ({error}); fetch the file again") from None
    missing = [c for c in columns if c not in file.schema_arrow.names]
    if missing:
        known = ", ".join(file.schema_arrow.names)
        file.close()
        raise DataError(f"{path}: has no column {missing[0]!r} (known: {known}); name the columns of the data set")
    return file


def _bytes(value: Any, where: str, name: str) -> bytes:
    data = value.as_py()
    data = data.get("bytes") if isinstance(data, dict) else data
    if not isinstance(data, bytes):
        raise DataError(f"{where}: {name} holds no picture bytes; embed them in the file instead of paths")
    return data


def _label(value: Any, where: str, name: str) -> int:
    label = value.as_py()
    if not isinstance(label, int) or isinstance(label, bool):
        raise DataError(f"{where}: {name} must be a whole number, got {label!r}")
    return label
