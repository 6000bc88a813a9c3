"""Sweeps of small runs on the images of the package, by Hydra's own launcher and by submitit's local workers."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from evaluate.table import readme_tables, table_csv
from tests.test_layout import ROOT
from zoo.compose import compose
from zoo.paths import results_dir
from zoo.results import read_records, write_record
from zoo.sweep import _quoted, recorded, report

SMALL = ["images=600", "test_limit=50"]


def sweep(where: Path, *words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "zoo.sweep", *words, f"output={where}"]
    return subprocess.run(line, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


def states(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line.split()[0] for line in done.stdout.splitlines() if " recipe=" in line and "HYDRA" not in line]


@pytest.mark.slow
def test_seeds_are_run_once_and_merge_into_one_row(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra 'slurm' is not installed")
    first = sweep(tmp_path, "recipe=resnet8_fashion_w8a8", "seed=0,1", *SMALL, "hydra/launcher=workers")
    assert first.returncode == 0 and states(first) == ["made", "made"], first.stderr
    records = read_records(tmp_path)
    assert [(r.seed, r.file.endswith("-seed1.json")) for r in records] == [(0, False), (1, True)]
    assert all((tmp_path / r.checkpoint / "manifest.json").is_file() for r in records)
    assert records[1].command.endswith("recipe=resnet8_fashion_w8a8 seed=1 images=600 test_limit=50")

    again = sweep(tmp_path, "recipe=resnet8_fashion_w8a8", "seed=0,1,2", *SMALL)
    assert again.returncode == 0 and states(again) == ["kept", "kept", "made"], again.stderr
    records = read_records(tmp_path)
    scores = [r.top1 for r in records]
    mean = sum(scores) / 3
    deviation = (sum((s - mean) ** 2 for s in scores) / 2) ** 0.5
    table = readme_tables(records)
    assert table.count("`resnet8_fashion_w8a8`") == 1 and f"| {mean:.2f} ± {deviation:.2f} (3) |" in table
    assert table_csv(records).count("\nresnet8_fashion_w8a8,") == 3

    # one other value makes no folder of its own, and must not replace what is there
    other = sweep(tmp_path, "recipe=resnet8_fashion_w8a8", "quant.act.bits=6", *SMALL)
    assert other.returncode == 1 and "this is a changed recipe, and would replace" in other.stdout
    assert read_records(tmp_path) == records


@pytest.mark.slow
def test_a_run_that_fails_stops_no_other_and_other_fields_write_apart(tmp_path: Path) -> None:
    words = ["recipe=resnet8_fashion_w8a8", "quant.act.bits=8,99,6", *SMALL]
    done = sweep(tmp_path, *words)
    assert done.returncode == 1 and states(done) == ["made", "failed", "made"], done.stderr
    assert "2 of 3 runs have their number" in done.stdout and "99" in done.stdout
    bits = [json.loads(p.read_text())["bits"] for p in sorted(tmp_path.glob("quant.act.bits=*/*/*-tflite.json"))]
    assert bits == ["W8A6", "W8A8"]


@pytest.mark.slow
def test_a_float_network_is_trained_once_for_each_seed(tmp_path: Path) -> None:
    words = ["recipe=resnet8_fashion_float", "images=256", "test_limit=50", "steps.0.train.epochs=1"]
    assert states(sweep(tmp_path, *words, "seed=0")) == ["made"]
    again = sweep(tmp_path, *words, "seed=0,1")
    assert again.returncode == 0 and states(again) == ["kept", "made"], again.stderr
    third = sweep(tmp_path, *words, "seed=0,1,2")
    assert third.returncode == 0 and states(third) == ["kept", "kept", "made"], third.stderr
    (tmp_path / "weights" / "resnet8_fashion_float-seed2.safetensors").unlink()
    names = sorted(p.name for p in (tmp_path / "weights").glob("*.safetensors"))
    assert names == ["resnet8_fashion_float-seed1.safetensors", "resnet8_fashion_float.safetensors"]


def test_a_number_of_other_float_weights_is_not_kept(tmp_path: Path) -> None:
    fields = compose(["recipe=resnet8_qat_w4a4"])
    shipped = next(r for r in read_records(results_dir()) if r.recipe == "resnet8_qat_w4a4" and r.seed == 0)
    write_record(shipped, tmp_path)
    assert recorded(fields, tmp_path) == shipped.top1
    for part in ("model", "teacher"):
        other = copy.deepcopy(fields)
        for source in other[part]["weights"]["sources"]:
            source["sha256"] = "0" * 64
        assert recorded(other, tmp_path) is None, part
    assert recorded(fields | {"teacher": None}, tmp_path) is None


@pytest.mark.parametrize("place", ["a,b", "x (old)", "a=1", "it's", "a#b", "über", "end\\", "quote\\'s", "[1,2]"])
def test_a_sweep_writes_into_a_folder_of_any_name(place: str) -> None:
    (parsed,) = OverridesParser.create().parse_overrides([f"hydra.sweep.dir={_quoted(place)}"])
    assert parsed.value() == place and not parsed.is_sweep_override()


def test_runs_that_left_no_word_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "outcome.json").write_text('{"state": "made", "top1": 50.0, "overrides": ["recipe=a"]}')
    assert report(tmp_path, 3) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "run 0: left no outcome" in lines[0] and "run 2: left no outcome" in lines[2]
    assert lines[1:] == ["made    recipe=a: 50.00 %", lines[2], "1 of 3 runs have their number"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["recipe=resnet8_fashion_w8a9"], "did you mean"),
        (["recipe=resnet8_fashion_w8a8", "sed=1,2"], "sed"),
        (["seed=1,2"], "name at least one recipe"),
        (["recipe"], "expected field=value"),
        (["recipe=resnet8_fashion_w8a8", "model=resnet8,resnet9"], "model resnet9"),
    ],
)
def test_wrong_words_are_refused_in_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = sweep(tmp_path, *words)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and done.stderr.startswith("error: ")
    assert said in done.stderr.replace("'", "")
    assert not any(tmp_path.iterdir())
