"""Data sets: a reader per file, one cache, one fingerprint."""

from __future__ import annotations

from zoo.data._config import DataConfig, find_reader, load_split
from zoo.data._labels import class_names
from zoo.data._split import Split, require_apart

__all__ = ["DataConfig", "Split", "class_names", "find_reader", "load_split", "require_apart"]
