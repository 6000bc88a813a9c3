from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zoo.data import _cache
from zoo.data._cache import cached
from zoo.data._split import fingerprint
from zoo.errors import DataError

ROOT = Path(__file__).resolve().parents[2]
COUNT, SHAPE = 20, (4, 4, 3)
PIXELS = (np.arange(COUNT * 48) * 7 % 251).astype(np.uint8).reshape(COUNT, *SHAPE)
LABELS = np.arange(COUNT) % 3


class Source:
    """Rows that count how often they were asked for."""

    def __init__(self, labels: Any = LABELS, pixels: Any = PIXELS) -> None:
        self.calls, self.labels, self.pixels = 0, labels, pixels

    def __call__(self) -> Iterator[tuple[np.ndarray[Any, Any], int]]:
        self.calls += 1
        yield from zip(self.pixels, map(int, self.labels), strict=True)


def get(source: Any, count: int = COUNT, **key: Any) -> _cache.Cached:
    return cached({"toy": 1, **key}, count, SHAPE, source, "toy", 3)


def entries(cache: Path) -> list[Path]:
    return [p for p in (cache / "data").iterdir() if p.is_dir()]


def assert_right(found: _cache.Cached) -> None:
    pixels, labels, digest = found
    np.testing.assert_array_equal(pixels, PIXELS)
    np.testing.assert_array_equal(labels, LABELS)
    assert digest == fingerprint(PIXELS, LABELS)


def test_decoded_once_and_read_only(cache: Path) -> None:
    source = Source()
    assert_right(get(source))
    again = get(source)
    assert_right(again)
    assert source.calls == 1 and len(entries(cache)) == 1
    assert isinstance(again[0], np.memmap) and not again[0].flags.writeable


def test_another_key_is_another_entry(cache: Path) -> None:
    source = Source()
    get(source)
    get(source, size=5)
    assert source.calls == 2 and len(entries(cache)) == 2


def cut(folder: Path) -> None:
    data = (folder / "pixels.npy").read_bytes()
    (folder / "pixels.npy").write_bytes(data[: len(data) // 2])


def flip(folder: Path) -> None:
    data = bytearray((folder / "pixels.npy").read_bytes())
    data[-1] ^= 1
    (folder / "pixels.npy").write_bytes(data)


def relabel(folder: Path) -> None:
    np.save(folder / "labels.npy", (LABELS + 1) % 3)


def old_version(folder: Path) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps(meta | {"version": 0}))


DAMAGE = {
    "cut": cut,
    "flipped bit": flip,
    "labels": relabel,
    "old version": old_version,
    "no meta": lambda f: (f / "meta.json").unlink(),
    "empty meta": lambda f: (f / "meta.json").write_text(""),
    "meta is a list": lambda f: (f / "meta.json").write_text("[]"),
    "meta lacks its field": lambda f: (f / "meta.json").write_text('{"version": 1}'),
    "meta is no text": lambda f: (f / "meta.json").write_bytes(b"\xff\xfe"),
    "no pixels": lambda f: (f / "pixels.npy").unlink(),
    "pixels are empty": lambda f: (f / "pixels.npy").write_bytes(b""),
    "labels are objects": lambda f: np.save(f / "labels.npy", np.array([{}] * COUNT), allow_pickle=True),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_damage_is_noticed_and_mended(cache: Path, damage: Any) -> None:
    source = Source()
    get(source)
    damage(entries(cache)[0])
    assert_right(get(source))
    assert source.calls == 2
    assert_right(get(source))
    assert source.calls == 2


KILLED = """
import sys
import numpy as np
from zoo.data._cache import cached
def rows():
    for i in range(20):
        if i == 10:
            print("half", flush=True)
            sys.stdin.read()
        yield np.zeros((4, 4, 3), np.uint8), 0
cached({"toy": 1}, 20, (4, 4, 3), rows, "toy", 3)
"""


def test_killed_half_way_leaves_nothing_behind(cache: Path) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", KILLED], cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "half\n"
        assert len(entries(cache)) == 1
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    source = Source()
    assert_right(get(source))
    assert source.calls == 1
    assert len(entries(cache)) == 1, "the unfinished folder is still there"


def test_two_runs_at_once_decode_once() -> None:
    inside, go = threading.Event(), threading.Event()
    first, second = Source(), Source()

    def slow() -> Iterator[tuple[np.ndarray[Any, Any], int]]:
        inside.set()
        assert go.wait(60)
        yield from first()

    found: list[_cache.Cached] = []
    one = threading.Thread(target=lambda: found.append(get(slow)))
    two = threading.Thread(target=lambda: found.append(get(second)))
    one.start()
    assert inside.wait(60)
    two.start()
    go.set()
    one.join(60)
    two.join(60)
    assert first.calls == 1 and second.calls == 0
    assert len(found) == 2
    for each in found:
        assert_right(each)


def test_disk_full(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np.lib.format, "write_array_header_1_0", full)
        with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); free some space"):
            get(Source())
    assert entries(cache) == []
    assert_right(get(Source()))


LIMITED = """
import resource, sys
import numpy as np
from zoo.data._cache import cached
from zoo.errors import DataError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    cached({}, 100, (64, 64, 3), lambda: ((np.zeros((64, 64, 3), np.uint8), 0) for _ in range(100)), "toy", 1)
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs the file size limit of POSIX")
def test_a_write_that_the_system_refuses_half_way_is_an_error_and_no_crash(cache: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "the image cache cannot be written (File too large)" in done.stdout
    assert entries(cache) == []


def test_no_write_permission(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root, as in a container, may write anywhere
    with pytest.raises(DataError, match=r"cannot be written \(Permission denied\).*ZOO_CACHE"):
        get(Source())


def test_cache_folder_is_a_file(cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        get(Source())


def test_an_entry_is_read_from_a_cache_that_cannot_be_written(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get(Source())

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert_right(get(Source()))


def test_unreadable_source_is_not_blamed_on_the_cache(cache: Path) -> None:
    def broken() -> Iterator[tuple[np.ndarray[Any, Any], int]]:
        yield PIXELS[0], 0
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(DataError, match=r"^toy: cannot be read \(Input/output error\)"):
        get(broken)
    assert entries(cache) == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (Source(labels=[*LABELS[:-1], 3]), "row 19 has label 3, the data set has classes 0..2"),
        (Source(labels=[-1, *LABELS[1:]]), "row 0 has label -1"),
        (Source(LABELS[:-1], PIXELS[:-1]), "19 rows, expected 20"),
        (Source([*LABELS, 0], [*PIXELS, PIXELS[0]]), "more than the expected 20 rows"),
        (Source(pixels=PIXELS[:, :, :3]), r"row 0 is uint8 \[4, 3, 3\], expected uint8 \[4, 4, 3\]"),
        (Source(pixels=PIXELS[..., :1]), r"row 0 is uint8 \[4, 4, 1\]"),
        (Source(pixels=PIXELS.astype(np.float32)), "row 0 is float32"),
    ],
    ids=["label too large", "label negative", "too few", "too many", "shape", "grey", "dtype"],
)
def test_bad_rows_are_refused_and_nothing_is_kept(cache: Path, source: Source, message: str) -> None:
    with pytest.raises(DataError, match=f"^toy: {message}"):
        get(source)
    assert entries(cache) == []


def test_no_rows(cache: Path) -> None:
    with pytest.raises(DataError, match="toy: holds no images"):
        get(Source([], []), 0)


def test_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOO_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _cache.cache_dir() == tmp_path / ".cache" / "zoo"
