from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for every test, so that none reads what another one decoded."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ZOO_CACHE", str(folder))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes ``{"train/cat": 3}`` as PNG files of one colour each, and returns their root."""

    def write(counts: dict[str, int], root: str = "pictures", side: int = 8) -> Path:
        for place, (folder, count) in enumerate(sorted(counts.items())):
            (tmp_path / root / folder).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                colour = (place * 20, i, 255 - i)
                Image.fromarray(np.full((side, side, 3), colour, np.uint8)).save(tmp_path / root / folder / f"{i}.png")
        return tmp_path / root

    return write
