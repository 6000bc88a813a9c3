"""The table of float networks: from the JSON beside weights and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evaluate.floats import float_table
from zoo.errors import ArtifactError


def notes(**changes: Any) -> dict[str, Any]:
    test = {"name": "shapes-test", "n": 1000, "subset": None, "fingerprint": "f"}
    fields = {"recipe": "toy_float", "seed": 0, "top1": 80.0, "test": test, "tensors_sha256": "a" * 64,
              "train": {"fingerprint": "t"}, "start": {"source": "random initialisation"},
              "steps": [{"name": "train", "settings": {}}], "log": {"train": {"steps": 1500}}}  # fmt: skip
    return fields | changes


def test_seeds_are_one_row_and_the_teacher_is_named(tmp_path: Path) -> None:
    assert float_table(tmp_path) == ""
    taught = {"train": {"steps": 10}, "train_1": {"steps": 20}, "teacher": {"model": "big"}}
    for name, content in {
        "toy_float": notes(), "toy_float-seed1": notes(seed=1, top1=82.0), "alone": notes(recipe="alone", log=taught),
    }.items():  # fmt: skip
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    rows = float_table(tmp_path).strip().splitlines()[4:]
    assert rows == [
        "| `alone` | shapes-test | 1,000 | **80.00** | 1 | 30 | big | `aaaaaaaaaaaa` |",
        # the deviation of 80 and 82 is the root of two
        "| `toy_float` | shapes-test | 1,000 | **80.00** | 81.00 ± 1.41 (2) | 1,500 | none | `aaaaaaaaaaaa` |",
    ]


def test_another_training_is_not_merged_as_a_seed(tmp_path: Path) -> None:
    taught = {"train": {"steps": 1500}, "teacher": {"model": "big", "sha256": "b" * 64}}
    for what, change in {
        "steps": {"steps": [{"name": "train", "settings": {"epochs": 9}}]}, "teacher": {"log": taught},
        "training images": {"train": {"fingerprint": "u"}}, "start": {"start": {"source": "a file"}},
    }.items():  # fmt: skip
        for name, content in {"toy_float": notes(), "toy_float-seed1": notes(seed=1) | change}.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        with pytest.raises(ArtifactError, match=f"toy_float: its records of several seeds differ in {what}"):
            float_table(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"recipe": "x"}', json.dumps(notes(recipe=None)),
                                  json.dumps({k: v for k, v in notes().items() if k != "seed"})])  # fmt: skip
def test_a_file_that_is_no_training_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(notes()))
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"odd\.json: is no record of a float training"):
        float_table(tmp_path)
