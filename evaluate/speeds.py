"""The measured speeds as Markdown, from the JSON files of ``benchmarks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from zoo.errors import ArtifactError


def speeds(folder: Path) -> str:
    """Return one table for each of ``train.json``, ``peers.json`` and ``speed.json``; every cell is a ratio.

    ArtifactError where a file cannot be read or lacks a field.
    """
    blocks = []
    for name, block in (("train", _train), ("peers", _peers), ("speed", _forward)):
        path = folder / f"{name}.json"
        try:
            blocks.append(block(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path}: cannot be rendered ({error!r}); measure again (benchmarks/README.md)"
            ) from None
    return "\n".join(blocks)


def _table(title: str, head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return f"{title}\n\n" + "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _train(found: dict[str, Any]) -> str:
    head = ["network, batch", "QAT step, float32", "bfloat16", "its memory, float32", "bfloat16"]
    head += ["QAT step by PyTorch's operations, float32", "bfloat16", "float step of plain PyTorch", "loading"]
    rows = [
        [f"`{name}`, {r['batch']}"]
        + [f"{r[f'native_qat_{what}_{kind}']:.2f}" for what in ("step", "memory") for kind in ("float32", "bf16")]
        + [f"{r[f'qat_step_{kind}']:.2f}" for kind in ("float32", "bf16")]
        + [f"{r['plain_pytorch_over_ours']:.2f}", f"{100 * r['loading_share']:.1f} %"]
        for name, r in found["ratio"].items()
    ]
    title = (
        f"Training ({found['machine']}, one thread): a QAT step at W4A4 with the compiled kernels, in float steps of "
        "the same precision; a step of plain PyTorch in float32 with a DataLoader, in steps of ours in bfloat16; "
        "loading and augmentation as a share of a step."
    )
    return _table(title, head, rows)


def _peers(found: dict[str, Any]) -> str:
    rows = []
    for work in ("adaround", "gptq"):
        theirs, times = found[work]["theirs"], found[work]["times_faster"]["wall"]
        peer = f"{theirs['package']} {theirs['versions'][theirs['package']]}"
        rows.append([f"`{work}`", peer, f"{times['step']:.1f}", f"{times['total']:.1f}"])
    title = f"Without training, against peers ({found['machine']}, {found['threads']} threads): their time in ours."
    return _table(title, ["step", "peer", "the step", "in all"], rows)


def _forward(found: dict[str, Any]) -> str:
    parts = ("calibrate_minmax", "calibrate_mse", "fake_quantized_forward", "integer_forward")
    ratios = found["ratio_to_float_forward"].items()
    rows = [[f"`{name}`", *(f"{ratio[part]:.2f}" for part in parts)] for name, ratio in ratios]
    title = (
        f"Inference ({found['machine']}, {found['threads']} threads), in float forwards of the same images. The "
        "integer network shows what an engine computes; it is not one."
    )
    return _table(title, ["network", *(part.replace("_", " ") for part in parts)], rows)
