"""Where recipes, records and checkpoints lie: beside ``zoo/`` in a checkout, inside the package in a wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def _folder(name: str) -> Path:
    checkout = _PACKAGE.parent
    # A wheel lies in site-packages, where another project may own a folder named ``recipes``: ask for our own file.
    beside = (checkout / "pyproject.toml").is_file() and (checkout / name).is_dir()
    return checkout / name if beside else _PACKAGE / f"_{name}"


def recipes_dir() -> Path:
    """Return the folder of the shipped YAML: ``recipe/``, ``model/``, ``data/``."""
    return _folder("recipes")


def results_dir() -> Path:
    """Return the folder of the shipped records and checkpoints, ``<recipe>/...``; it may not exist."""
    return _folder("results")
