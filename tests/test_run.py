"""The command line: what a newcomer sees, what a run leaves behind, and one-line errors for everything wrong."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import zoo
from zoo.compose import compose, names
from zoo.errors import RecipeError, ZooError
from zoo.paths import recipes_dir
from zoo.run import main

ROOT = Path(__file__).resolve().parents[1]
SMALL = [
    "recipe=resnet8_fashion_w4a4", "images=64", "test_limit=50", "steps.3.calibrate.images=64",
    "steps.4.gptq.images=32", "steps.5.distill.epochs=0.25",
]  # fmt: skip


def command(arguments: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ZOO_")} | more
    return subprocess.run(
        [sys.executable, "-m", "zoo.run", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_recipe(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in names())
    first = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("python3 -m venv"))
    assert f"start with: {first.rpartition('.venv/bin/')[2]}\n" in shown


@pytest.mark.parametrize("name", names())
def test_every_recipe_resolves_and_names_itself(name: str) -> None:
    from zoo.pipeline import dry

    recipe = dry(compose([f"recipe={name}"]))
    assert recipe.name == name and recipe.description


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("model", {"builder": "resnet9"}, "model.builder: model 'resnet9' is unknown"),
        ("model", {"args": {"depth": 20}}, "model.args: got an unexpected keyword argument 'depth'"),
        ("data", {"reader": "cifar11"}, "data.reader: data 'cifar11' is unknown"),
        ("data", {"args": {"colour": 1}}, "data.args: got an unexpected keyword argument 'colour'"),
        ("data", {"reader": "held_out", "args": {"reader": "cifar11", "count": 5}}, "data 'cifar11' is unknown"),
        ("teacher", {"builder": "resnet9"}, "teacher.builder: model 'resnet9' is unknown"),
        ("teacher", {"labels": "../labels/cifar10"}, "labels: '../labels/cifar10' is unknown"),
    ],
)
def test_a_check_finds_what_no_file_of_ours_takes(group: str, changes: dict[str, object], message: str) -> None:
    from zoo.pipeline import dry

    fields = compose(["recipe=resnet8_fashion_w4a4"])
    fields["teacher"] = fields["model"]
    dry(fields)
    fields[group] = fields[group] | changes
    with pytest.raises(ZooError) as refused:
        dry(fields)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["recip=resnet8_fashion_w4a4"],
            r"^recip: no such field; did you mean 'recipe'\? .*; a field .* by \+recip=VALUE$",
        ),
        ([SMALL[0], "quant.act.bit=5"], r"^quant\.act\.bit: no such field; did you mean 'bits'\? \(known: bits, "),
        ([SMALL[0], "steps.3.calibrate.imges=5"], r"^steps\.3\.calibrate\.imges: no such field; did you mean 'images'"),
        ([SMALL[0], "train.holdout=5"], r"^train\.holdout: is a field of a step; name a step by its place"),
        ([SMALL[0], "steps.calibrate.images=5"], r"^recipe: .*; name a step by its place, .* steps\.2\.train\.lr"),
        ([SMALL[0], "steps.9.calibrate.images=5"], r"^steps\.9\.calibrate\.images: no such field|^recipe: "),
    ],
)
def test_a_field_that_is_not_there_is_answered_with_a_near_one(words: list[str], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        compose(words)
    assert "\n" not in str(caught.value)


def test_steps_that_end_in_no_integers_are_refused_before_any_work() -> None:
    fields = compose(["recipe=resnet8_fashion_w4a4"])
    fields["steps"] = fields["steps"][:-1]
    from zoo.pipeline import dry, run

    for start in (dry, run):
        with pytest.raises(RecipeError, match="the last step must be integerize"):
            start(fields)


def test_a_float_training_before_quantize_is_refused() -> None:
    from zoo.pipeline import dry

    fields = compose(["recipe=resnet8_fashion_w4a4"])
    fields["steps"] = [{"train": {"epochs": 1}}, *fields["steps"]]
    with pytest.raises(RecipeError, match="train before quantize would train the float network"):
        dry(fields)


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        ([{"match": ":last", "weight": {"bits": 8}}], "quant.overrides[0].weight: mid_rise is for 2..4 bits"),
        ([{"match": ":first", "weight": {"bits": 16, "mid_rise": False}}], "quant.overrides[0].weight.bits: must be"),
        ([{"match": "*", "weight": {"bit": 8}}], "quant.overrides[0].weight: field 'bit' is unknown"),
        ([{"match": "*", "weight": {"mid_rise": False}}, {"match": ":last", "weight": {"bits": 8}}], ""),
        ([{"match": "fc", "weight": {"mid_rise": False}}, {"match": ":last", "weight": {"bits": 8}}], ""),
    ],
)
def test_a_check_applies_the_overrides_of_the_first_and_last_layer(
    overrides: list[dict[str, object]], refused: str
) -> None:
    from zoo.pipeline import dry

    fields = compose(["recipe=resnet8_qat_w2a2", "quant=w2a2_reads_mid_rise"])
    dry(fields)
    fields["quant"]["overrides"] = overrides
    if not refused:  # what other layers' names decide is left to the run
        assert len(dry(fields).quant.overrides) == 2
        return
    with pytest.raises(RecipeError) as told:
        dry(fields)
    assert refused in str(told.value)


@pytest.mark.parametrize("word", ["yes", "True", "1"])
def test_a_check_is_true_or_false_and_nothing_is_run_by_mistake(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipe=resnet8_fashion_w4a4", f"check={word}"]) == 2
    assert capsys.readouterr().err == f"error: check: expected true or false, got {word!r}\n"


def test_the_example_of_the_help_is_a_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    example = next(line for line in shown.splitlines() if "change any field" in line).partition("e.g. ")[2].split()
    first = next(line for line in shown.splitlines() if "start with:" in line).rpartition(" ")[2]
    fields = compose([first, *example])
    assert fields["seed"] == 1 and fields["quant"]["act"]["bits"] == 6 and len(example) == 4


def test_a_run_writes_a_checkpoint_a_record_and_nothing_else(tmp_path: Path) -> None:
    done = command([*SMALL, f"output={tmp_path}"])
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "resnet8_fashion_w4a4"
    assert sorted(p.name for p in folder.iterdir())[0] == "checkpoint" and len(list(folder.iterdir())) == 2
    (record,) = (json.loads(p.read_text()) for p in folder.glob("*.json"))
    assert record["data"]["n"] == 50 and "50 of" in record["data"]["subset"] and record["bits"] == "W4A4"
    net = zoo.load(folder / "checkpoint", integer=True)
    assert len(net.labels) == 10 and "resnet8_fashion_w4a4" in net.card
    again = command([*SMALL, f"output={tmp_path / 'second'}"])
    assert again.returncode == 0, again.stderr
    weights = [folder, tmp_path / "second" / "resnet8_fashion_w4a4"]
    first, second = (hashlib.sha256((f / "checkpoint" / "model.safetensors").read_bytes()).hexdigest() for f in weights)
    assert first == second == record["artifact_sha256"]


def test_training_with_quantization_leaves_a_curve_beside_the_record_and_no_work_folder(tmp_path: Path) -> None:
    train = "{train: {epochs: 2, batch: 32}}"
    steps = f"steps=[{{quantize: {{batchnorm: merge}}}}, {{calibrate: {{images: 64}}}}, {train}, integerize]"
    small = ["recipe=resnet8_fashion_w4a4", "images=128", "test_limit=50", steps, f"output={tmp_path}"]
    assert main(small) == 0
    folder = tmp_path / "resnet8_fashion_w4a4"
    (record,) = folder.glob("*.json")
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", f"{record.stem}.csv", record.name]
    rows = record.with_suffix(".csv").read_text().splitlines()
    assert rows[0].startswith("position,epoch,step") and len(rows) == 3
    assert json.loads(record.read_text())["bits"] == "W4A4"
    zoo.load(folder / "checkpoint", integer=True)


def test_killed_at_any_moment_nothing_half_written_is_taken_for_good(tmp_path: Path) -> None:
    target = tmp_path / "resnet8_fashion_w4a4" / "checkpoint"
    for delay in (1.0, 3.0, 4.0, 5.0, 6.0, 8.0):
        process = subprocess.Popen(
            [sys.executable, "-m", "zoo.run", *SMALL, f"output={tmp_path}"], cwd=ROOT, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.exists():
            zoo.load(target)
    done = command([*SMALL, f"output={tmp_path}"])
    assert done.returncode == 0, done.stderr
    zoo.load(target)
    assert sorted(p.name.startswith(".") for p in (tmp_path / "resnet8_fashion_w4a4").iterdir()) == [False, False]


WRONG = {
    "recipe": (["recipe=resnet8_w4a5"], "resnet8_w4a4"),
    "model": (["recipe=resnet8_w8a8", "model=resnet9"], "resnet8"),
    "data": (["recipe=resnet8_w8a8", "data=cifar11"], "cifar10"),
    "unresolved": ([f"recipe={recipes_dir()}/recipe/resnet8_w4a4.yaml"], "recipe=resnet8_w4a4"),
    "no field": (["recipe"], "field=value"),
    "unknown field": (["recipe=resnet8_fashion_w8a8", "colour=3"], "colour"),
    "added field": (["recipe=resnet8_fashion_w8a8", "+colour=3"], "colour"),
    "unknown step": (["recipe=resnet8_fashion_w8a8", "steps=[fold_batchnorms]"], "fold_batchnorm"),
    "step of other code": (["recipe=resnet8_fashion_w8a8", "steps=[os.system]"], "os.system"),
    "private step": (["recipe=resnet8_fashion_w8a8", "steps=[_learn]"], "_learn"),
    "step field": (["recipe=resnet8_fashion_w8a8", "+steps.2.calibrate.image=3"], "images"),
    "value": (["recipe=resnet8_fashion_w8a8", "steps.2.calibrate.act=median"], "minmax"),
    "type": (["recipe=resnet8_fashion_w8a8", "steps.2.calibrate.images=many"], "calibrate.images"),
    "bits": (["recipe=resnet8_fashion_w8a8", "quant.weight.bits=9"], "bits"),
    "bits 1": (["recipe=resnet8_fashion_w8a8", "quant.act.bits=1"], "bits"),
    "budget": (["recipe=resnet8_fashion_w8a8", "budget=huge"], "fast"),
    "seed": (["recipe=resnet8_fashion_w8a8", "seed=-1"], "seed"),
    "images": (["recipe=resnet8_fashion_w8a8", "images=10"], "images"),
    "too many": (["recipe=resnet8_fashion_w8a8", "images=6000"], "5000"),
    "override": (["recipe=resnet8_fashion_w4a8", "quant.overrides=[{match: layer9.*, weight: {bits: 8}}]"], "layer9"),
    "semantics": (["recipe=resnet8_fashion_w8a8", "images=64", "steps.2.calibrate.images=64", "steps.3.gptq.images=16",
                   "steps.4.integerize.semantics=cmsis"], "tflite"),
    "no integerize": (["recipe=resnet8_fashion_w8a8", "images=64", "steps=[fold_batchnorm]"], "integerize"),
    "teacher without weights": (["recipe=resnet8_float", "data=fake", "teacher.weights=null"], "resnet20_trained"),
    "quantizer": (["recipe=resnet8_qat_w4a4", "+steps.2.train.quantizer=lsqq"], "lsq_plus"),
    "other classes": (["recipe=resnet8_fashion_w8a8", "data=imagenet_folder", "data.args.root=/nowhere"], "nowhere"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_ends_in_one_line_and_exit_code_two(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, named = WRONG[case]
    assert main([*arguments, f"output={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and named in error, error
    assert list(tmp_path.rglob("*")) == []


def test_a_wrong_value_is_told_of_before_the_place_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    """A recorded recipe with another value is refused for its place, but not with a value that no place would take."""
    for change, told in {"images=10": "would replace", "images=0": "recipe.images: must be positive"}.items():
        assert main(["recipe=resnet8_w4a4", change]) == 2
        assert told in capsys.readouterr().err


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    done = command(
        ["recipe=mnv1_w8a8", f"output={tmp_path}"], ZOO_MIRROR=str(tmp_path), ZOO_CACHE=str(tmp_path / "cache"),
        HF_HUB_OFFLINE="1", https_proxy="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9",
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.startswith("error: ") and "Traceback" not in done.stderr
    assert "ZOO_MIRROR" in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert main([*SMALL, f"output={tmp_path / 'file'}"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path / "file") in error


def test_recipes_are_yaml_with_a_package_header() -> None:
    for path in recipes_dir().glob("*/*.yaml"):
        if path.parent.name == "ablation":  # read by zoo.ablate, no group of Hydra's
            continue
        assert path.read_text().startswith("# @package "), path


@pytest.mark.parametrize(("flags", "last"), [("fpu avx512f amx_bf16 amx_tile", "AMX"), ("fpu avx512f", None)])
def test_records_say_whether_the_processor_has_amx(
    flags: str, last: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from zoo.pipeline import cpu_name

    monkeypatch.setattr(Path, "read_text", lambda self: f"processor : 0\nmodel name\t: A Chip\nflags\t\t: {flags}\n")
    said = ["A Chip", torch.backends.cpu.get_cpu_capability(), *([last] if last else [])]
    assert cpu_name() == ", ".join(said)
