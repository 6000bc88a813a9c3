"""A made-up record for tests; its numbers are nobody's results."""

from __future__ import annotations

from typing import Any

from zoo.results import Calibration, EvalData, Git, Machine, Parent, Record


def make_record(**changes: Any) -> Record:
    """Return a valid record with some fields changed."""
    fields: dict[str, Any] = {
        "recipe": "toy_w4a8", "recipe_sha256": "a" * 64, "model": "toy", "bits": "W4A8", "semantics": "tflite",
        "budget": "fast", "data": EvalData("shapes", 200, "full", "b" * 64),
        "calibration": Calibration("shapes-train", 64, "c" * 64), "seed": 0, "top1": 88.5, "top1_fake": 88.0,
        "agreement": 99.5, "float_top1": 90.0, "drop": 1.5, "drop_interval": (-0.25, 3.25), "weights_bytes": 12_345,
        "float_bytes": 98_765, "artifact_sha256": "d" * 64, "parent": Parent("org/toy-float", "e" * 64),
        "seconds": {"calibrate": 1.5, "adaround": 20.25}, "versions": {"python": "3.11.7", "torch": "2.15.0"},
        "machine": Machine("a CPU", 2), "git": Git("f" * 40, False), "command": "python -m zoo.run recipe=toy_w4a8",
        "steps": ("fold_batchnorm", "quantize", "calibrate", "adaround", "integerize"), "notes": (),
    }  # fmt: skip
    return Record(**{**fields, **changes})
