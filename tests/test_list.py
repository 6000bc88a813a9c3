"""``python -m zoo.list`` tells a newcomer what exists, without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from tests.records import make_record
from zoo import list as zoo_list
from zoo import resolve
from zoo.paths import recipes_dir, results_dir
from zoo.results import write_record

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("recipe", "model", "data", "quant"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"some_{kind}.yaml").write_text(f"# @package _global_\ndescription: a {kind}\n")
    monkeypatch.setattr(zoo_list, "recipes_dir", lambda: tmp_path)
    monkeypatch.setattr(zoo_list, "results_dir", lambda: tmp_path / "results")
    return tmp_path


def test_names_and_descriptions(folders: Path) -> None:
    text = zoo_list.overview()
    for kind in ("recipe", "model", "data", "quant"):
        assert f"some_{kind}  a {kind}\n" in text
    assert "none yet" in text


def test_a_comment_stands_in_for_the_description(folders: Path) -> None:
    (folders / "quant" / "w3.yaml").write_text("# @package quant\n# three bits\nweight: {bits: 3}\n")
    assert "w3          three bits\n" in zoo_list.overview()


def test_checkpoints_with_accuracy_and_size(folders: Path) -> None:
    write_record(make_record(), folders / "results")
    line = next(s for s in zoo_list.overview().splitlines() if "toy_w4a8" in s)
    expected = "toy_w4a8  W4A8  88.50 %  1  90.00 %  12 kB  shapes, 200  tflite  run the recipe"
    assert line.split() == expected.split()
    (folders / "results" / "toy_w4a8" / "checkpoint").mkdir()
    (folders / "results" / "toy_w4a8" / "checkpoint" / "manifest.json").write_text("{}")
    assert "here" in next(s for s in zoo_list.overview().splitlines() if "toy_w4a8" in s)
    # the checkpoint is that of seed 0, the others are told beside it
    write_record(make_record(seed=1, top1=89.5, drop=0.5), folders / "results")
    (line,) = (s for s in zoo_list.overview().splitlines() if "toy_w4a8" in s)
    assert "88.50 %  89.00 ± 0.71 (2)  90.00 %" in line


@pytest.mark.parametrize("text", ["a: [", "- a list", "\x00"])
def test_broken_yaml_is_one_line(folders: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    (folders / "recipe" / "bad.yaml").write_text(text)
    assert zoo_list.main([]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: bad.yaml: ") and error.count("\n") == 1


def test_what_is_no_step_is_refused(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_list.main(["calibrat"]) == 2 and zoo_list.main(["train", "gptq"]) == 2 and zoo_list.main(["--help"]) == 0
    told = capsys.readouterr()
    assert "python -m zoo.list STEP" in told.out and "did you mean 'calibrate'" in told.err


@pytest.mark.parametrize("name", resolve.names("zoo.steps"))
def test_a_step_is_shown_with_all_its_fields(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert zoo_list.main([name]) == 0
    text = capsys.readouterr().out
    kind = getattr(resolve.load("zoo.steps", name, "test"), resolve.class_name(name))
    assert kind.__doc__.splitlines()[0] in text
    shown = dict(re.findall(r"^  (\w+) +.* = (.*)$", text, re.MULTILINE))
    assert shown.keys() == {field.name for field in fields(kind)}
    values = [field for field in fields(kind) if isinstance(field.default, int | float | str)]
    assert all(shown[field.name] == repr(field.default) for field in values)


def test_command_lists_what_is_on_disk() -> None:
    done = subprocess.run([sys.executable, "-m", "zoo.list"], cwd=ROOT, capture_output=True, text=True, check=True)
    names = [p.stem for kind in ("recipe", "model", "data", "quant") for p in (recipes_dir() / kind).glob("*.yaml")]
    names += [p.parent.name for p in results_dir().glob("*/*-*.json")]
    assert [n for n in names if n not in done.stdout] == []


def test_every_shipped_recipe_says_what_it_is() -> None:
    for kind in ("recipe", "model", "data", "quant"):
        missing = [name for name, text in zoo_list.describe(recipes_dir() / kind).items() if not text]
        assert missing == [], f"recipes/{kind}: no description"


def test_torch_stays_out() -> None:
    code = "import sys, zoo.list; zoo.list.overview(); print(sorted({'torch', 'timm', 'hydra'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
