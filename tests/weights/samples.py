"""Weights of a small ResNet8, as files in each form, and the configurations that name them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from zoo.models import resnet8
from zoo.weights import ModelConfig, Source, WeightConfig

COUNTER = "num_batches_tracked"


def state(seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of a ResNet8 for grey images, without BatchNorm's step counters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {n: t.shape for n, t in resnet8.build(10, 1).state_dict().items() if not n.endswith(COUNTER)}
    return {name: torch.rand(shape, generator=generator) + 0.5 for name, shape in shapes.items()}


def sha256(data: bytes) -> str:
    """Return the hexadecimal digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()


def mirrored(folder: Path, data: bytes | None = None, name: str = "weights/net.safetensors") -> Source:
    """Write a file below the mirror folder; return the source that asks for exactly it."""
    data = save(state()) if data is None else data
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)
    return Source("mirror", sha256(data), name)


def model(*sources: Source, tensors_sha256: str = "", layout: Any = "torch", **args: Any) -> ModelConfig:
    """Return a ResNet8 for grey images with these sources."""
    weights = WeightConfig(sources, layout, tensors_sha256) if sources else None
    preprocess = {"size": [28, 28], "mean": [0.0], "std": [1.0]}
    return ModelConfig("net", "resnet8", preprocess, {"num_classes": 10, "in_channels": 1} | args, weights=weights)
