"""A published network with its published weights must score what it is known to score."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

from zoo.data._sources import mirror, parquet_rows
from zoo.paths import recipes_dir
from zoo.preprocess import Preprocess
from zoo.resolve import build
from zoo.weights import ModelConfig, build_model


@pytest.mark.data
def test_resnet8_with_its_weights_classifies_cifar10() -> None:
    """It scores 87.2 % on all 10,000 images; 80 % of 500 lie nearly five standard errors below."""
    images = mirror("data/cifar10/test-00000-of-00001.parquet")
    if images is None or mirror("weights/resnet8_mlperf_tiny_cifar10.keras.safetensors") is None:
        pytest.skip("needs CIFAR-10 and float weights below $ZOO_MIRROR or ../shared")
    config = build(ModelConfig, yaml.safe_load((recipes_dir() / "model" / "resnet8.yaml").read_text()), "model")
    rows = list(parquet_rows([images], "img", "label", 32, rows=range(500)))
    pixels, labels = np.stack([p for p, _ in rows]), torch.tensor([label for _, label in rows])
    with torch.no_grad():
        guesses = build_model(config)(Preprocess.from_dict(config.preprocess).batch(pixels)).argmax(1)
    assert float((guesses == labels).float().mean()) > 0.80
