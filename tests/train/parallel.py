"""A small training by the processes that ``torchrun`` started: ``parallel.py OUT``; each writes its own state."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.train.interrupted import train
from zoo import ranks

SETTINGS: dict[str, dict[str, Any]] = {
    # two steps an epoch of 16 images; float32, so that only the order of sums differs
    kind: {"epochs": 3, "batch": 16, "lr": 0.02, "bf16": False, "cutout": 3, "holdout": 16, "patience": 99} | more
    for kind, more in {
        "lsq": {"quantizer": "lsq", "distill": 0.5},
        "lsq_plus": {"quantizer": "lsq_plus", "ema": 0.9},
        "tqt": {"quantizer": "tqt", "dampen": {"start": 0.0}},
        "oscillation": {
            "quantizer": "tqt", "lr": 1.0, "epochs": 12, "dampen": {"start": 0.0},
            "freeze": {"start": 0.1, "low": 0.2, "high": 0.2, "momentum": 0.1},
        },
    }.items()
}  # fmt: skip


def result(kind: str) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Return the trained state, the rows of the curve, and the log."""
    state, ctx = train(None, SETTINGS[kind], 48, residual=kind == "lsq_plus")
    return state, ctx.curves, ctx.log["train"]


def main(out: Path) -> None:
    """Train each kind."""
    ranks.start()
    for kind in SETTINGS:
        state, rows, log = result(kind)
        save_file(state, out / f"{kind}.{os.environ['RANK']}.safetensors")
        if ranks.leader():
            (out / f"{kind}.json").write_text(json.dumps({"rows": rows, "log": log}))
    ranks.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
