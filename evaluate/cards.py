"""The model cards of the shipped checkpoints: made from each checkpoint's own record and configuration."""

from __future__ import annotations

from pathlib import Path

from zoo.artifact import checkpoint
from zoo.artifact.card import render_card
from zoo.artifact.codec import encode
from zoo.artifact.files import MANIFEST, parse
from zoo.errors import ArtifactError


def cards(results: Path) -> dict[Path, str]:
    """Return what the card of every checkpoint below ``results`` should say."""
    found = {}
    for manifest in sorted(results.glob(f"*/checkpoint/{MANIFEST}")):
        folder = manifest.parent
        metrics, config = (parse(folder / name, folder / name) for name in ("metrics.json", "config.json"))
        found[folder / "README.md"] = render_card(metrics, config)
    return found


def write_card(path: Path, text: str) -> None:
    """Save a checkpoint again with another card; its weights stay the same bytes, or ArtifactError is raised."""
    kept = checkpoint.read(path.parent)
    if checkpoint.tensor_bytes(encode(kept.program)[0]) != (path.parent / "model.safetensors").read_bytes():
        raise ArtifactError(f"{path.parent}: its weights would be saved as other bytes; run its recipe again")
    checkpoint.save(path.parent, kept.program, kept.config, recipe=kept.recipe, metrics=kept.metrics, card=text)
