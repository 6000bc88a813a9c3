"""The page of ablations: every variant of the recipes, and only their records."""

from __future__ import annotations

from pathlib import Path

import pytest

from evaluate.ablations import ablations_markdown
from tests.records import make_record
from zoo.errors import ArtifactError
from zoo.results import EvalData, write_record

SPEC = """recipe: toy
description: A toy
common: []
takes: [plain]
variants:
  plain: {}
  tqt: {train: {quantizer: tqt, dampen: {}}}
  bare: {fields: [quant=w4a4], without: [reestimate_batchnorm]}
"""


def test_rows_are_the_variants_with_what_their_records_say(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "toy.yaml").write_text(SPEC)
    root = tmp_path / "results"
    assert "No variant has been run yet" in ablations_markdown(tmp_path, root)
    held = EvalData("toy-train-held-out", 400, "400 of 600", "9" * 64)
    for variant, seed, top1 in (("plain", 0, 80.0), ("tqt", 0, 81.0), ("tqt", 1, 83.0)):
        record = make_record(
            recipe=variant, seed=seed, top1=top1, drop=90 - top1, drop_interval=(0.0, 20.0), data=held,
            seconds={"train": 300.0},
        )  # fmt: skip
        write_record(record, root / "ablations" / "toy")
    rows = [line for line in ablations_markdown(tmp_path, root).splitlines() if line.startswith("| ")][1:]
    # 1.96 sqrt(0.8 0.2 / 400) = 3.92 points
    assert rows[0] == "| **`plain`**, taken | nothing | 80.00 ± 3.92 |  | 1 | 5 min |"
    # two seeds: 1.96 sqrt(0.82 0.18 / 800) = 2.66 points
    assert rows[1] == '| `tqt` | `quantizer: "tqt"`, `dampen: defaults` | 82.00 ± 2.66 | +2.00 | 2 | 5 min |'
    assert rows[2].startswith("| `bare` | `quant=w4a4`, without `reestimate_batchnorm` | not run yet")


def test_a_record_of_no_variant_is_named(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "toy.yaml").write_text(SPEC)
    write_record(make_record(recipe="gone"), tmp_path / "results" / "ablations" / "toy")
    with pytest.raises(ArtifactError, match="toy/gone: no such variant"):
        ablations_markdown(tmp_path, tmp_path / "results")
