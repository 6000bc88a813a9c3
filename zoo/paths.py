"""Where recipes, records and checkpoints lie: beside ``zoo/`` in a checkout, inside the package in a wheel."""

from __future__ import annotations

import os
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


def output_dir() -> Path:
    """Return where runs write by default: ``results`` of the checkout, else below the current folder."""
    shipped = results_dir()
    return Path("results") if shipped.parent == _PACKAGE else shipped


def run_place(name: str, seed: int) -> Path:
    """Return where below a results folder a run keeps its checkpoint; seed 0 makes the one that is shipped."""
    return Path(name) if seed == 0 else Path(name, f"seed{seed}")


def weights_name(name: str, seed: int) -> str:
    """Return what the files of float weights are called that a run trains, without their suffix."""
    return "-".join(run_place(name, seed).parts)


def shipped_checkpoint(name: str) -> Path | None:
    """Return the folder of the checkpoint of this name that comes with the package; None where there is none."""
    shipped = results_dir() / name / "checkpoint"
    # os.path.isdir is False, and never an error, for names that no file can have
    return shipped if "/" not in name and os.path.isdir(shipped) else None


def local_checkpoint(name_or_path: str | Path) -> Path | None:
    """Return the folder of a shipped checkpoint, or the one at this path; None where there is neither."""
    text = str(name_or_path)
    shipped = shipped_checkpoint(text) if isinstance(name_or_path, str) else None
    if shipped is not None:
        return shipped
    if not os.path.isdir(text):
        return None
    return Path(text) / "checkpoint" if os.path.isdir(Path(text) / "checkpoint") else Path(text)
