from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import zoo
from tests.networks import images, small_resnet
from zoo.artifact import files
from zoo.artifact.checkpoint import Network

RECIPE: dict[str, Any] = {
    "name": "small",
    "quant": {
        "weight": {"bits": 4, "granularity": "per_channel"},
        "act": {"bits": 8, "symmetric": False},
        "overrides": [{"match": ":first", "weight": {"bits": 8}},
                      {"match": "block2.conv1", "weight": {"bits": 3, "mid_rise": True}},
                      {"match": "block3.conv2", "weight": {"bits": 2, "symmetric": False}}],
    },
    "steps": ["fold_batchnorm", "quantize", {"calibrate": {"act": "minmax"}}, "integerize"],
}  # fmt: skip


@pytest.fixture(scope="session")
def network() -> Network:
    """A ResNet8 with random weights in 2, 3 (mid-rise), 4 and 8 bits."""
    return zoo.quantize(small_resnet(), RECIPE, [images(64)])


@pytest.fixture
def folder(network: Network, tmp_path: Path) -> Path:
    network.save(tmp_path / "small")
    return tmp_path / "small"


@pytest.fixture
def damage(folder: Path) -> Callable[..., Path]:
    """Change tensors or config of the folder and sign it again, so that the check behind the hash is reached."""

    def change(
        *, tensors: Callable[[dict[str, Any]], object] | None = None, config: Callable[[Any], object] | None = None
    ) -> Path:
        if tensors is not None:
            held = load_file(folder / "model.safetensors")
            held = {k: t.clone() for k, t in held.items()}
            tensors(held)
            save_file(held, folder / "model.safetensors")
        if config is not None:
            fields = json.loads((folder / "config.json").read_text())
            config(fields)
            (folder / "config.json").write_text(json.dumps(fields))
        sign(folder)
        return folder

    return change


def sign(folder: Path) -> None:
    """Write the manifest anew."""
    manifest = json.loads((folder / files.MANIFEST).read_text())
    for name, entry in manifest["files"].items():
        entry["sha256"] = files.sha256(folder / name)
    (folder / files.MANIFEST).write_text(json.dumps(manifest))
