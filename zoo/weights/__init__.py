"""Float weights: named sources checked by sha256, converters from other layouts, strict loading."""

from __future__ import annotations

from zoo.weights._config import ModelConfig, Source, WeightConfig
from zoo.weights._load import build_model, find_builder, load_weights, tensors_sha256

__all__ = ["ModelConfig", "Source", "WeightConfig", "build_model", "find_builder", "load_weights", "tensors_sha256"]
