"""Speed as ratios within one run: ``python -m benchmarks.speed [NETWORK ...]`` writes ``benchmarks/speed.json``.

Each ratio is the median over paired rounds: both sides run in turn, so a busy machine slows both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from zoo.compose import compose
from zoo.context import Context, Images
from zoo.data import DataConfig, load_split
from zoo.graph.fold import fold_batchnorm
from zoo.graph.trace import trace
from zoo.integer.layers import build_integer
from zoo.integer.program import extract
from zoo.integer.simulated import build_simulated
from zoo.loading import load_network
from zoo.memory import keep_freed
from zoo.pipeline import cpu_name, versions
from zoo.preprocess import Preprocess
from zoo.progress import bar
from zoo.quant.insert import insert_quantizers
from zoo.recipe import Recipe
from zoo.resolve import build, load
from zoo.steps.calibrate import Calibrate
from zoo.weights import ModelConfig, build_model

OUT = Path(__file__).with_name("speed.json")
IMAGES = {"resnet8": 512, "mnv1": 128, "mnv2": 128, "effnet_lite0": 128}


def paired(base: Callable[[], Any], other: Callable[[], Any], rounds: int = 5) -> float:
    """Return the median of ``time(other) / time(base)`` over rounds, after one round that does not count."""
    ratios = []
    for i in range(rounds + 1):
        times = []
        for f in (base, other) if i % 2 else (other, base):
            started = time.perf_counter()
            f()
            times.append(time.perf_counter() - started)
        ratios.append(times[1] / times[0] if i % 2 else times[0] / times[1])
    return round(statistics.median(ratios[1:]), 3)


def command(arguments: list[str], rounds: int = 5) -> float:
    """Return the median seconds of a Python process with these arguments, less those of an empty one."""
    times = []
    for _ in range(rounds):
        pair = []
        for words in (["-c", "pass"], arguments):
            started = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
            pair.append(time.perf_counter() - started)
        times.append(pair[1] - pair[0])
    return round(statistics.median(times), 3)


def network(name: str) -> dict[str, Any]:
    """Measure calibration, fake-quantized and integer forward of a W8A8 recipe against the float forward."""
    fields = compose([f"recipe={name}_w8a8"])
    recipe = Recipe.parse(fields)
    config = build(ModelConfig, recipe.model, "model")
    preprocess = Preprocess.from_dict(dict(config.preprocess))
    split = load_split(build(DataConfig, recipe.data, "data"), "calibration", IMAGES[name])
    images = Images(split.images, preprocess)
    parent = trace(build_model(config), images.at(slice(0, 1))).to(memory_format=torch.channels_last)
    folded = fold_batchnorm(parent)
    context = Context(recipe.quant, images, parent, recipe.seed, recipe.budget)
    graph = insert_quantizers(folded, recipe.quant)

    def forward(net: nn.Module) -> Callable[[], None]:
        def go() -> None:
            with torch.no_grad():
                for batch in images.batches(32):
                    net(batch)

        return go

    found: dict[str, Any] = {"images": len(images), "batch": 32}
    calibrated: fx.GraphModule = graph
    for observer in ("minmax", "mse"):
        step = Calibrate(weight=observer, act=observer, images=len(images))  # type: ignore[arg-type]
        calibrated = step(graph, context)
        found[f"calibrate_{observer}"] = paired(forward(folded), lambda step=step: step(graph, context), 3)  # type: ignore[misc]
    _, channels, height, width = images.at(slice(0, 1)).shape
    shape = (channels, height, width)
    program = extract(calibrated, shape, load("zoo.integer.semantics", "tflite", "benchmark"))
    found["fake_quantized_forward"] = paired(forward(folded), forward(build_simulated(program, "tflite")))
    found["integer_forward"] = paired(forward(folded), forward(build_integer(program, "tflite")))
    return found


def main(names: list[str]) -> None:
    """Measure, print and write."""
    torch.manual_seed(0)
    torch.set_num_threads(2)
    keep_freed()
    found: dict[str, Any] = {"machine": cpu_name(), "threads": 2, "versions": versions(), "ratio_to_float_forward": {}}
    for name in bar(names or list(IMAGES), "networks"):
        found["ratio_to_float_forward"][name] = network(name)
    started = time.perf_counter()
    load_network("resnet8_w8a8", integer=True)
    first = time.perf_counter() - started
    started = time.perf_counter()
    load_network("mnv1_w4a4", integer=True)
    found["seconds"] = {
        "import_zoo": command(["-c", "import zoo"]),
        "zoo_run_help": command(["-m", "zoo.run", "--help"]),
        "zoo_load_resnet8_after_torch": round(first, 3),
        "zoo_load_mnv1_after_torch": round(time.perf_counter() - started, 3),
    }
    text = json.dumps(found, indent=2) + "\n"
    if not names:  # the file is of all networks and of one run
        OUT.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
