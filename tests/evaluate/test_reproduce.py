from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from benchmarks import reproducibility
from evaluate import reproduce
from evaluate.differences import causes, checkpoint_differences
from tests.artifact.conftest import sign
from tests.records import make_record
from zoo.paths import results_dir
from zoo.progress import SHOWN, bar
from zoo.recipe import content_hash
from zoo.recipe_file import read_recipe
from zoo.results import Machine, Record, dump, read_records, write_record
from zoo.run import resolve

NAME = "resnet8_fashion_w8a8"


@pytest.fixture
def shipped(tmp_path: Path) -> tuple[Path, Record]:
    """A results folder with one record and its checkpoint."""
    others = shutil.ignore_patterns("*-seed*")
    shutil.copytree(results_dir() / NAME, tmp_path / "results" / NAME, ignore=others)
    (record,) = read_records(tmp_path / "results")
    return tmp_path / "results", record


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the shipped recipe, run here and measured on few images."""
    root = tmp_path_factory.mktemp("made")
    words = [sys.executable, "-m", "zoo.run", f"recipe={NAME}", "test_limit=200", f"output={root}"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def measured(made: Path, tmp_path: Path) -> tuple[Path, Record]:
    """A copy of these results, and their record."""
    shutil.copytree(made, tmp_path / "results")
    (record,) = read_records(tmp_path / "results")
    return tmp_path / "results", record


def _change(folder: Path, key: str, value: int = 1) -> None:
    held = {k: t.clone() for k, t in load_file(folder / "model.safetensors").items()}
    held[key].view(-1)[0] += value
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    sign(folder)


@pytest.mark.parametrize("record", read_records(results_dir()), ids=lambda r: f"{r.recipe}-{r.seed}")
def test_a_record_carries_the_command_that_makes_it(record: Record) -> None:
    words = shlex.split(record.command)
    assert words[:3] == ["python", "-m", "zoo.run"]
    fields, own = resolve(words[3:])
    assert content_hash(fields) == record.recipe_sha256
    assert own == {}
    kept = results_dir() / record.checkpoint / "recipe.yaml"
    if kept.is_file():
        assert content_hash(read_recipe(kept)) == record.recipe_sha256


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_weights_only_holds_and_notices_what_changed(
    measured: tuple[Path, Record], capsys: pytest.CaptureFixture[str]
) -> None:
    root, record = measured
    row = reproduce.rescore(record, root)
    assert (row.verdict, row.top1, row.note) == (reproduce.SAME, record.top1, ""), row.causes
    untrue = replace(record, top1=record.top1 - 1, drop=record.drop + 1, drop_interval=(-5.0, 5.0))
    write_record(untrue, root)
    assert reproduce.main(["--all", "--weights-only", "--results", str(root)]) == 1
    assert "differs" in capsys.readouterr().out
    _change(root / NAME / "checkpoint", "bias")
    row = reproduce.rescore(record, root)
    assert row.verdict == reproduce.DIFFERS and row.causes[0].startswith("weights ")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_recipe_that_runs_again_holds(measured: tuple[Path, Record]) -> None:
    root, record = measured
    first = reproduce.rerun(record, root)
    assert first.verdict == reproduce.IDENTICAL, first
    # another recipe than the record's: it is named
    path = root / NAME / "checkpoint" / "recipe.yaml"
    path.write_text(path.read_text().replace("images: 4096", "images: 1024"))
    sign(root / NAME / "checkpoint")
    write_record(replace(record, recipe_sha256="0" * 64), root)
    second = reproduce.rerun(read_records(root)[0], root)
    assert any(c.startswith("recipe 000000000000 -> ") for c in second.causes)
    assert any(c.startswith("calibration images ") for c in second.causes)


def test_the_tensors_that_differ_are_named(shipped: tuple[Path, Record], tmp_path: Path) -> None:
    kept = shipped[0] / NAME / "checkpoint"
    shutil.copytree(kept, tmp_path / "other")
    assert checkpoint_differences(kept, tmp_path / "other") == ()
    _change(tmp_path / "other", "bias")
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["nodes"][1]["out"]["scale"] *= 2
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    assert checkpoint_differences(kept, tmp_path / "other") == ("conv (format)", "conv.bias (1 of 16 elements)")
    assert checkpoint_differences(tmp_path / "absent", kept) == ()


def test_what_went_in_differently_is_named() -> None:
    record = make_record()
    assert causes(record, record) == ()
    other = replace(record, seed=8, machine=Machine("a CPU", 4), versions=record.versions | {"torch": "2.9.1"})
    assert causes(record, other) == ("seed 0 -> 8", "threads 2 -> 4", "torch 2.15.0 -> 2.9.1")


def _done(monkeypatch: pytest.MonkeyPatch, code: int, *, error: str = "") -> None:
    class Done:
        returncode, stdout, stderr = code, "", error

    monkeypatch.setattr(reproduce, "_child", lambda *_: Done)


def test_verdicts(shipped: tuple[Path, Record], monkeypatch: pytest.MonkeyPatch) -> None:
    root, record = shipped

    def run(**changes: Any) -> reproduce.Row:
        def child(python: str, module: str, recipe: str, output: str) -> Any:
            out = Path(output.removeprefix("output="))
            shutil.copytree(root / NAME / "checkpoint", out / NAME / "checkpoint")
            if "artifact_sha256" in changes:
                _change(out / NAME / "checkpoint", "bias")
            write_record(replace(record, **changes), out)
            return type("Done", (), {"returncode": 0})

        monkeypatch.setattr(reproduce, "_child", child)
        return reproduce.rerun(record, root)

    assert run().verdict == reproduce.IDENTICAL
    near = {"top1": record.top1 - 0.25, "drop": record.drop + 0.25, "drop_interval": (-5.0, 5.0)}
    far = {"top1": record.top1 - 0.35, "drop": record.drop + 0.35, "drop_interval": (-5.0, 5.0)}
    row = run(artifact_sha256="1" * 64, **near)
    assert (row.verdict, row.tensors) == (reproduce.WITHIN, ("conv.bias (1 of 16 elements)",))
    assert run(artifact_sha256="1" * 64, **far).verdict == reproduce.DIFFERS
    assert run(data=replace(record.data, fingerprint="2" * 64)).verdict == reproduce.DIFFERS


def test_what_cannot_be_run_is_said(
    shipped: tuple[Path, Record], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, _ = shipped
    _done(monkeypatch, 2, error="noise\nerror: fashion: the images are missing\n")
    for mode in ([], ["--weights-only"]):
        assert reproduce.main([NAME, *mode, "--results", str(root)]) == 2
        printed = capsys.readouterr().out
        assert "not run" in printed and "fashion: the images are missing" in printed and "error:" not in printed
    assert reproduce.main(["resnet8_fashion_w8b8", "--results", str(root)]) == 2
    assert NAME in capsys.readouterr().err
    _done(monkeypatch, -9)
    assert reproduce.main([NAME, "--results", str(root)]) == 2
    assert "killed by signal 9" in capsys.readouterr().out
    shutil.rmtree(root / NAME / "checkpoint")
    assert reproduce.main([NAME, "--weights-only", "--results", str(root)]) == 2
    assert "not in this checkout" in capsys.readouterr().out
    for arguments in ([], ["--all", NAME]):
        with pytest.raises(SystemExit) as stopped:
            reproduce.main(arguments)
        assert stopped.value.code == 2


def test_without_a_checkpoint_the_command_gives_the_recipe(shipped: tuple[Path, Record], tmp_path: Path) -> None:
    root, record = shipped
    kept = read_recipe(root / NAME / "checkpoint" / "recipe.yaml")
    file, tolerance = reproduce._recorded_recipe(record, tmp_path / "absent", tmp_path, {"threads": 1})
    assert read_recipe(Path(file)) == kept | {"threads": 1}
    assert tolerance == kept["tolerance"]["top1"]


def test_the_document_shows_what_was_measured() -> None:
    rows = json.loads(reproducibility.OUT.read_text())
    assert {r["recipe"] for r in rows} >= {"resnet8_fashion_w4a8"}
    assert reproducibility.OUT.read_text() == dump(rows, "rows")
    text = reproducibility.DOC.read_text(encoding="utf-8")
    assert reproducibility.document(text, rows) == text
    for row in rows:
        recorded = next(r for r in read_records(results_dir()) if (r.recipe, r.seed) == (row["recipe"], 0))
        assert row["recorded"] == recorded.top1, "measure again: python -m benchmarks.reproducibility"
        assert (row["verdict"] == reproduce.IDENTICAL) == (not row["tensors"] and row["top1"] == row["recorded"])


def test_the_parent_process_needs_no_torch() -> None:
    program = (
        "import sys; sys.modules['torch'] = None; import evaluate.reproduce as r\n"
        "print(len(r.choose([], r.results_dir(), seeds=True)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) == len(read_records(results_dir()))


@pytest.mark.parametrize("terminal", [True, False])
def test_what_a_run_says_meanwhile_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delenv(SHOWN, raising=False)
    program = f"print('näh', {SHOWN!r} in os.environ, file=sys.stderr)"
    done = reproduce._child(sys.executable, "timeit", "-n1", "-r1", "-s", "import os, sys; print(1)", program)
    assert done.stderr == capsys.readouterr().err == f"näh {terminal}\n"
    assert (done.stdout[:2], done.returncode) == ("1\n", 0)


@pytest.mark.parametrize(
    ("terminal", "environment", "shown"),
    [(False, {}, False), (True, {}, True), (False, {SHOWN: "1"}, True), (False, {SHOWN: "1", "RANK": "1"}, False)],
)
def test_a_bar_is_shown_where_it_leads_to_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], shown: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    for name in (SHOWN, "RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    made: Any = bar([], "label")
    assert made.disable != shown


def test_a_damaged_row_costs_no_other_row(measured: tuple[Path, Record], capsys: pytest.CaptureFixture[str]) -> None:
    root, record = measured
    other = replace(record, recipe="another")
    write_record(other, root)
    shutil.copytree(root / record.recipe / "checkpoint", root / "another" / "checkpoint")
    (root / "another" / "checkpoint" / "README.md").write_text("altered")
    assert reproduce.main(["--all", "--weights-only", f"--results={root}"]) == 2
    shown = capsys.readouterr().out
    assert "1 of 2 rows hold" in shown and "another" in shown and "README.md" in shown


def test_a_name_is_the_row_that_tables_show(shipped: tuple[Path, Record], capsys: pytest.CaptureFixture[str]) -> None:
    root, record = shipped
    write_record(replace(record, seed=2), root)
    write_record(replace(record, seed=2, semantics="floor"), root)
    shown = [(r.seed, r.semantics) for r in reproduce.choose([], root)]
    assert sorted(shown) == [(0, "tflite"), (2, "floor")], "a row of each arithmetic, as tables have it"
    (root / NAME / "fashion-mnist-5k-test-floor-seed2.json").unlink()
    assert [r.seed for r in reproduce.choose([NAME], root)] == [r.seed for r in reproduce.choose([], root)] == [0]
    assert [r.seed for r in reproduce.choose([NAME], root, seeds=True)] == [0, 2]
    shutil.rmtree(root / NAME / "checkpoint")
    assert reproduce.main(["--all", "--seeds", "--weights-only", f"--results={root}"]) == 2
    told = capsys.readouterr()
    assert "0 of 0 rows hold" in told.out and f"{NAME} seed=2: its checkpoint is not here" in told.err
