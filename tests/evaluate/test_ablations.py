"""The page of ablations: every variant of the recipes, and only their records."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from evaluate.ablations import ablations_pages
from tests.records import make_record
from zoo.errors import ArtifactError
from zoo.results import EvalData, Machine, Parent, write_record

SVG = "{http://www.w3.org/2000/svg}"
SPEC = """recipe: toy
description: A toy
why: So be it.
common: []
takes: [plain]
variants:
  plain: {}
  tqt: {train: {quantizer: tqt, dampen: {}}}
  bare: {fields: [quant=w4a4], without: [reestimate_batchnorm]}
"""


def page(root: Path) -> str:
    return ablations_pages(root, root / "results")[root / "results" / "ablations.md"]


def test_rows_are_the_variants_with_what_their_records_say(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "toy.yaml").write_text(SPEC)
    root = tmp_path / "results"
    assert "No variant has been run yet" in page(tmp_path)
    held = EvalData("toy-train-held-out", 400, "400 of 600", "9" * 64)
    for variant, seed, top1 in (("plain", 0, 80.0), ("tqt", 0, 81.0), ("tqt", 1, 83.0)):
        record = make_record(
            recipe=variant, seed=seed, top1=top1, drop=90 - top1, drop_interval=(0.0, 20.0), data=held,
        )  # fmt: skip
        write_record(record, root / "ablations" / "toy")
    rows = [line for line in page(tmp_path).splitlines() if line.startswith("| ")][1:]
    # 1.96 sqrt(0.8 0.2 / 400) = 3.92 points
    assert rows[0] == "| **`plain`**, taken | nothing | 80.00 ± 3.92 |  |  | 1 |"
    # two seeds, which see the same images: 1.96 sqrt(0.82 0.18 / 400) = 3.77 points
    cells = "82.00 ± 3.77 | +2.00 |  | 82.00 ± 1.41 (2) |"
    assert rows[1] == f'| `tqt` | `quantizer: "tqt"`, `dampen: defaults` | {cells}'
    assert rows[2].startswith("| `bare` | `quant=w4a4`, without `reestimate_batchnorm` | not run yet")
    assert page(tmp_path).endswith("\n\nSo be it.\n")


def test_a_row_of_another_processor_than_the_first_says_so(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "toy.yaml").write_text(SPEC)
    for variant, cpu in (("plain", "one"), ("tqt", "one"), ("bare", "another")):
        record = make_record(recipe=variant, machine=Machine(cpu, 2))
        write_record(record, tmp_path / "results" / "ablations" / "toy")
    changes = [line.split(" | ")[1] for line in page(tmp_path).splitlines() if line.startswith("| ")][1:]
    assert [text.partition("; ")[2] for text in changes] == ["", "", "run on another"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": EvalData("shapes", 200, "full", "7" * 64)}, "other test images than plain"),
        ({"parent": Parent("org/toy-float", "7" * 64)}, "other float weights than plain"),
        ({"semantics": "floor"}, "other arithmetic than plain"),
    ],
)
def test_only_what_is_comparable_is_compared(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "toy.yaml").write_text(SPEC)
    root = tmp_path / "results" / "ablations" / "toy"
    for record in (make_record(recipe="plain"), make_record(recipe="tqt", **change)):
        write_record(record, root)
    with pytest.raises(ArtifactError, match=f"toy tqt: its record of seed 0 has {said}"):
        page(tmp_path)


def test_a_record_of_no_variant_is_named(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "toy.yaml").write_text(SPEC)
    write_record(make_record(recipe="gone"), tmp_path / "results" / "ablations" / "toy")
    with pytest.raises(ArtifactError, match="toy/gone: no such variant"):
        page(tmp_path)


def test_oscillations_are_those_of_the_last_training_and_drawn_to_scale(tmp_path: Path) -> None:
    (tmp_path / "ablation").mkdir()
    spec = SPEC.replace("takes: [plain]", "takes: [plain]\noscillations: [plain, bare, tqt]")
    (tmp_path / "ablation" / "toy.yaml").write_text(spec)
    root = tmp_path / "results"
    layer = '"oscillating_percent_by_layer": {"a.conv": %s, "fc": 0.0}'
    notes = {
        "plain": ('train: {"oscillating_percent": 9.0, ' + layer % 9.5 + "}",
                  'train_12: {"oscillating_percent": 3.5, ' + layer % 4.5 + "}", 'train_7: {"loss": 1}'),
        "tqt": ('train: {"oscillating_percent": 1.25, ' + layer % 1.5 + "}",),
    }  # fmt: skip
    for variant, lines in notes.items():
        write_record(make_record(recipe=variant, notes=lines), root / "ablations" / "toy")
    pages = ablations_pages(tmp_path, root)
    rows = [line for line in pages[root / "ablations.md"].splitlines() if line.startswith("| ")][1:]
    assert "| 3.50 % |" in rows[0] and "| 1.25 % |" in rows[1]
    assert "(ablations/toy_oscillations.svg)" in pages[root / "ablations.md"]
    picture = ElementTree.fromstring(pages[root / "ablations" / "toy_oscillations.svg"])
    bars = {t.text: float(r.get("height", 0)) for r in picture.iter(SVG + "rect") for t in r.iter(SVG + "title")}
    assert set(bars) == {
        "plain, a.conv: 4.5 %", "plain, fc: 0 %", "tqt, a.conv: 1.5 %", "tqt, fc: 0 %",
    }  # fmt: skip
    assert bars["plain, a.conv: 4.5 %"] == pytest.approx(3 * bars["tqt, a.conv: 1.5 %"], abs=0.3)
