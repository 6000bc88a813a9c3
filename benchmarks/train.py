"""Speed of training as ratios within one run: ``python -m benchmarks.train`` writes ``benchmarks/train.json``.

Steps of two networks run in turn, so a busy machine slows both; ratios are medians over paired steps.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from zoo.compose import compose
from zoo.context import Context, Images
from zoo.graph.trace import trace
from zoo.memory import keep_freed
from zoo.native.kernels import kernels
from zoo.pipeline import cpu_name, versions
from zoo.preprocess import Preprocess
from zoo.quant.attach import attach
from zoo.quant.spec import QuantConfig
from zoo.recipe import Step, make_step
from zoo.resolve import build
from zoo.train import optimizer as optimizers
from zoo.train.data import Data
from zoo.train.fuse import fuse, lend
from zoo.train.log import Log
from zoo.train.loop import Loop
from zoo.train.objective import Objective
from zoo.weights import ModelConfig, build_model

OUT = Path(__file__).with_name("train.json")
NETWORKS = {"resnet8_untrained": 128, "mobilenetv1_cifar": 64}
COUNT = 2048


@dataclass
class Task:
    """A network with random weights, its batch, and random pictures."""

    fields: dict[str, Any]
    batch: int

    def model(self) -> nn.Module:
        """Return the float network, the same each time."""
        torch.manual_seed(0)
        return build_model(build(ModelConfig, self.fields["model"], "model"))

    def images(self) -> Images:
        """Return labelled uint8 pictures."""
        rng = np.random.Generator(np.random.PCG64(0))
        pixels = rng.integers(0, 256, (COUNT, 32, 32, 3), dtype=np.uint8)
        preprocess = Preprocess.from_dict(dict(self.fields["model"]["preprocess"]))
        return Images(pixels, preprocess, rng.integers(0, 10, COUNT))


def loop_of(task: Task, quantized: bool, bf16: bool, quantizer: str = "lsq", native: bool = False) -> Loop:
    """Return a training of the step train, not yet started."""
    images = task.images()
    net: fx.GraphModule = trace(task.model(), images.at(slice(0, 1)))
    context = Context(build(QuantConfig, task.fields["quant"], "quant"), images, net)
    if quantized:
        steps = [Step("quantize", {"batchnorm": "merge"}), Step("calibrate", {"images": 64})]
        for step in steps:
            net = make_step(step, "benchmark")(net, context)
    net = net.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    compiled = kernels() if native else None
    learners = attach(net, quantizer, False, compiled) if quantized else []
    lend(net, compiled)
    if compiled is not None and not quantized:
        fuse(net, compiled)
    parameters, groups = optimizers.groups(net, lr=1e-3, weight_decay=1e-4, lr_scale=1e-3)
    for p in parameters:
        p.requires_grad_(True)
    data = Data(images, torch.device("cpu"), holdout=0, augment=True, cutout=0)
    return Loop(
        net, net, data, optimizers.optimizer("sgd", groups, 0.9), Objective(), lambda step: 1.0,
        torch.Generator().manual_seed(0), Log(0, 10, 10**9), task.batch, 10**6, bf16, learners,
    )  # fmt: skip


def stepper(loop: Loop) -> Callable[[], None]:
    """Return a function that runs the next step."""
    loop.order = torch.randperm(len(loop.data))
    position = iter(range(10**9))

    def go() -> None:
        loop._advance(next(position) % loop.per_epoch)

    return go


class Plain(Dataset[tuple[torch.Tensor, int]]):
    """What a tutorial writes: one picture at a time, cropped and flipped in Python."""

    def __init__(self, task: Task) -> None:
        """Keep the pictures as they are."""
        images = task.images()
        self.pixels, self.labels, self.preprocess = images.pixels, images.labels, images.preprocess

    def __len__(self) -> int:
        """Return the number of pictures."""
        return COUNT

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return one augmented picture and its label."""
        assert self.preprocess is not None and self.labels is not None
        x = torch.from_numpy(np.pad(self.pixels[index], ((4, 4), (4, 4), (0, 0)))).permute(2, 0, 1).float()
        top, left = int(torch.randint(9, ())), int(torch.randint(9, ()))
        x = x[:, top : top + 32, left : left + 32]
        x = x.flip(2) if torch.rand(()) < 0.5 else x
        mean, std = (torch.tensor(v).reshape(-1, 1, 1) for v in (self.preprocess.mean, self.preprocess.std))
        return (x - mean) / std, int(self.labels[index])


def plain(task: Task) -> Callable[[], None]:
    """Return a step of plain eager FP32 PyTorch with a DataLoader in the same process."""
    net = task.model().train()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def endless() -> Iterator[Any]:
        while True:
            yield from DataLoader(Plain(task), task.batch, shuffle=True, drop_last=True)

    batches = endless()

    def go() -> None:
        x, y = next(batches)
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return go


def ratio(base: Callable[[], Any], other: Callable[[], Any], rounds: int) -> float:
    """Return the median of ``time(other) / time(base)`` over paired calls, after two that do not count."""
    found = []
    for i in range(rounds + 2):
        times = []
        for f in (base, other) if i % 2 else (other, base):
            started = time.process_time()
            f()
            times.append(time.process_time() - started)
        found.append(times[1] / times[0] if i % 2 else times[0] / times[1])
    return round(statistics.median(found[2:]), 3)


def memory(loop: Loop) -> int:
    """Return the bytes that a forward pass keeps for the backward pass."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    x, labels = loop.data.batch(torch.arange(loop.batch), loop.generator)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=loop.bf16):
            logits = loop.net(x)
        loop.objective(logits.float(), labels, None)
    return sum(seen.values())


def network(name: str, batch: int, rounds: int) -> dict[str, Any]:
    """Measure one network."""
    task = Task(compose([f"model={name}", "quant=w4a4", "name=benchmark", "steps=[]"]), batch)
    found: dict[str, Any] = {"batch": batch}
    for label, bf16 in (("float32", False), ("bf16", True)):
        ours = loop_of(task, False, bf16)
        for kind, native in (("", False), ("native_", True)):
            quantized = loop_of(task, True, bf16, native=native)
            found[f"{kind}qat_step_{label}"] = ratio(stepper(ours), stepper(quantized), rounds)
            found[f"{kind}qat_memory_{label}"] = round(memory(quantized) / memory(ours), 3)
        fused = loop_of(task, False, bf16, native=True)
        found[f"native_float_step_{label}"] = ratio(stepper(ours), stepper(fused), rounds)
    ours = loop_of(task, False, True)
    rows = torch.arange(batch)
    found["plain_pytorch_over_ours"] = ratio(stepper(ours), plain(task), rounds)
    found["loading_share"] = ratio(stepper(ours), lambda: ours.data.batch(rows, ours.generator), rounds)
    return found


def main(arguments: list[str]) -> None:
    """Measure, print and write; the argument is the number of paired steps."""
    rounds = int(arguments[0]) if arguments else 20
    torch.manual_seed(0)
    torch.set_num_threads(1)
    keep_freed()
    found: dict[str, Any] = {
        "machine": cpu_name(), "threads": 1, "versions": versions(), "rounds": rounds, "clock": "processor time",
        "ratio": {name: network(name, batch, rounds) for name, batch in NETWORKS.items()},
    }  # fmt: skip
    text = json.dumps(found, indent=2) + "\n"
    OUT.write_text(text)
    print(text, end="")


if __name__ == "__main__":
    main(sys.argv[1:])
