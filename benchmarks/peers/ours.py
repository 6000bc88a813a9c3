"""Ours: ``python -m benchmarks.peers.ours adaround|gptq``."""

from __future__ import annotations

import torch

from benchmarks.peers._common import BATCH, Work, arguments
from zoo.context import Context
from zoo.graph.trace import trace
from zoo.steps.adaround import Adaround
from zoo.steps.calibrate import Calibrate
from zoo.steps.fold_batchnorm import FoldBatchnorm
from zoo.steps.gptq import Gptq
from zoo.steps.quantize import Quantize


def main() -> None:
    """Quantize by fold_batchnorm, quantize, calibrate (mse) and the step, at its defaults but for the counts."""
    options = arguments()
    work = Work(options.step, options)
    count = options.images
    step: Adaround | Gptq = Gptq(images=count, batch=BATCH)
    if options.step == "adaround":
        step = Adaround(iterations=options.iterations, images=count, batch=BATCH)
    with work.stage("prepare"):
        parent = trace(work.model, work.images.at(slice(0, 1))).to(memory_format=torch.channels_last)
        context = Context(work.recipe.quant, work.images, parent)
        net = Quantize()(FoldBatchnorm()(parent, context), context)
    with work.stage("calibrate"):
        net = Calibrate(images=count, batch=BATCH)(net, context)
    with work.stage(options.step):
        net = step(net, context)
    work.report("lowbit-zoo", net, "calibrate: mse; the step corrects biases")


if __name__ == "__main__":
    main()
