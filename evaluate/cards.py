"""The model cards of the shipped checkpoints: made from each checkpoint's own record and configuration."""

from __future__ import annotations

from pathlib import Path

from zoo.artifact import files
from zoo.artifact.card import render_card

_CARD = "README.md"


def cards(results: Path) -> dict[Path, str]:
    """Return what the card of every checkpoint below ``results`` should say."""
    found = {}
    for manifest in sorted(results.glob(f"*/checkpoint/{files.MANIFEST}")):
        folder = manifest.parent
        metrics, config = (files.parse(folder / name, folder / name) for name in ("metrics.json", "config.json"))
        found[folder / _CARD] = render_card(metrics, config)
    return found


def write_card(path: Path, text: str) -> None:
    """Replace the card of a checkpoint, and the manifest with it; ArtifactError where a file is not what it lists."""
    folder = path.parent
    kept = files.verify(folder)

    def fill(new: Path) -> None:
        for name in kept:
            data = text.encode() if name == _CARD else files.content(folder, name, kept, None)
            (new / name).write_bytes(data)

    files.write_folder(folder, fill)
