"""What every measurement shares: the float network, its images, a clock, one line of JSON."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import torch
import torch._dynamo  # torch.optim imports it at first use, two seconds that would count for whoever is first
from torch import Tensor, nn

from zoo import __version__
from zoo.compose import compose
from zoo.context import Images
from zoo.data import DataConfig, load_split
from zoo.evaluation import predict
from zoo.preprocess import Preprocess
from zoo.recipe import Recipe
from zoo.resolve import build
from zoo.weights import ModelConfig, build_model

BATCH = 32
RECIPES = {"adaround": "resnet8_w4a8", "gptq": "mnv1_w4a8"}


@dataclass
class Work:
    """One measurement: recipe (model, data and formats; its steps are not used), images, thread count, clock.

    ``seconds`` holds wall and CPU seconds of each stage; CPU seconds count all threads.
    """

    step: str
    options: argparse.Namespace
    seconds: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Load network and images; nothing of this is timed."""
        torch.manual_seed(0)
        torch.set_num_threads(self.options.threads)
        self.recipe = Recipe.parse(compose([f"recipe={RECIPES[self.step]}"]))
        config = build(ModelConfig, self.recipe.model, "model")
        self.preprocess = Preprocess.from_dict(dict(config.preprocess))
        self.data = build(DataConfig, self.recipe.data, "data")
        split = load_split(self.data, "calibration", self.options.images)
        self.images = Images(split.images, self.preprocess)
        self.model: nn.Module = build_model(config).eval()

    def batches(self) -> list[Tensor]:
        """Return the calibration images as float ``[32, C, H, W]``, preprocessed."""
        return list(self.images.batches(BATCH))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.seconds[name] = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}

    def report(self, package: str, net: nn.Module, notes: str = "") -> None:
        """Print the measurement as the last line of standard output; with ``--top1 N``, the accuracy on N images."""
        total = {kind: sum(s[kind] for s in self.seconds.values()) for kind in ("wall", "cpu")}
        rounded = {
            name: {kind: round(value, 3) for kind, value in stage.items()}
            for name, stage in (self.seconds | {"total": total}).items()
        }
        found: dict[str, Any] = {
            "package": package,
            "versions": {
                package: __version__ if package == "lowbit-zoo" else version(package),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            "network": self.recipe.model["name"],
            "images": len(self.images),
            "batch": BATCH,
            "threads": self.options.threads,
            "notes": notes,
            "seconds": rounded,
        }
        if self.step == "adaround":
            found["iterations"] = self.options.iterations
        if self.options.top1:
            test = load_split(self.data, "test", self.options.top1)
            found["top1"] = round(predict(net, test, self.preprocess, package).top1, 2)
            found["top1_images"] = len(test)
        print(json.dumps(found), flush=True)


def arguments(step: str | None = None) -> argparse.Namespace:
    """Parse the command line; without a ``step`` it is the first argument."""
    parser = argparse.ArgumentParser()
    if step is None:
        parser.add_argument("step", choices=sorted(RECIPES))
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--iterations", type=int, default=100, help="iterations per layer (adaround)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--top1", type=int, default=0, metavar="N", help="measure accuracy on N test images, untimed")
    return parser.parse_args()
