"""Where a run writes: one run at a time, and nothing of another recipe is replaced by mistake."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.synchronize
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.test_run import ROOT, SMALL, command
from zoo import pipeline
from zoo.compose import compose
from zoo.data import DataConfig, load_split
from zoo.errors import ArtifactError, RecipeError, ZooError
from zoo.paths import results_dir
from zoo.place import Earlier, held, require_own
from zoo.recipe import Recipe, content_hash
from zoo.resolve import build
from zoo.results import Git, read_records, write_record


def _hold(work: str, holds: multiprocessing.synchronize.Event, done: multiprocessing.synchronize.Event) -> None:
    with held(Path(work)):
        holds.set()
        done.wait(60)


def test_a_second_run_in_the_same_place_is_refused_and_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    holds, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path / "x" / ".work"), holds, done))
    other.start()
    assert holds.wait(120)
    with pytest.raises(ArtifactError, match="another run is writing there"), held(tmp_path / "x" / ".work"):
        pass
    assert (tmp_path / "x" / ".work").is_dir(), "the other's folder stays"
    other.kill()
    other.join()
    with held(tmp_path / "x" / ".work"):
        pass
    assert not (tmp_path / "x" / ".work").exists()


def test_snapshots_of_another_run_stay(tmp_path: Path) -> None:
    with held(tmp_path / ".work"):
        (tmp_path / ".work" / "3-train-abc").mkdir()
    assert (tmp_path / ".work" / "3-train-abc").is_dir()


def told(fields: dict[str, Any], **other: object) -> str:
    """Return what the record of a run of this recipe, without a teacher, tells of what it was made of."""
    start = {"sha256": fields["model"]["weights"]["sources"][0]["sha256"]}
    kept = {"recipe_sha256": content_hash(fields), "parent": start, "notes": [], "seed": fields["seed"], "top1": 50.0}
    return json.dumps(kept | other)


def test_a_changed_recipe_does_not_replace_what_the_recipe_made(tmp_path: Path) -> None:
    plain = compose(["recipe=resnet8_fashion_w4a4"])
    changed = compose(["recipe=resnet8_fashion_w4a4", "quant.act.bits=6"])
    require_own(changed, tmp_path)  # nothing is there yet
    kept = tmp_path / "resnet8_fashion_w4a4" / "checkpoint" / "metrics.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(told(plain))
    with pytest.raises(RecipeError, match=r"would replace .*checkpoint; give it another output=DIR or name=NAME"):
        require_own(changed, tmp_path)
    for fields in (plain, changed | {"name": "six"}, plain | {"seed": 1}):
        require_own(fields, tmp_path)
    # what an older recipe of this name made, the recipe of today may replace
    kept.write_text(told(plain, recipe_sha256="0" * 64))
    require_own(plain, tmp_path)


@pytest.mark.parametrize(("seed", "file"), [(0, "fashion-tflite.json"), (3, "fashion-tflite-seed3.json")])
def test_a_record_counts_without_its_checkpoint(tmp_path: Path, seed: int, file: str) -> None:
    plain = compose(["recipe=resnet8_fashion_w4a4", f"seed={seed}"])
    record = tmp_path / "resnet8_fashion_w4a4" / file
    record.parent.mkdir()
    record.write_text(told(plain))
    require_own(plain, tmp_path)
    with pytest.raises(
        RecipeError, match=rf"changed recipe, and would replace .*{file}; give it another output=DIR or name=NAME"
    ):
        require_own(plain | {"test_limit": 100}, tmp_path)
    require_own(plain | {"seed": 7}, tmp_path)
    with pytest.raises(RecipeError, match=rf"would be taken for another seed of .*{file}; give it another output=DIR"):
        require_own(plain | {"test_limit": 100, "seed": 7}, tmp_path)


def test_other_float_weights_do_not_replace_what_those_of_the_recipe_gave(tmp_path: Path) -> None:
    plain = compose(["recipe=resnet8_fashion_w4a4"])
    kept = tmp_path / "resnet8_fashion_w4a4" / "checkpoint" / "metrics.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(told(plain))
    require_own(plain, tmp_path)
    mine = compose(["recipe=resnet8_fashion_w4a4", f"model.weights.sources.0.sha256={'1' * 64}"])
    assert content_hash(mine) == content_hash(plain)
    with pytest.raises(
        RecipeError,
        match=r"this run takes other float weights, and would replace .*checkpoint; give it another output=DIR",
    ):
        require_own(mine, tmp_path)
    # the recipe of today may name other weights than the one that was recorded
    kept.write_text(told(plain, parent={"sha256": "2" * 64}))
    require_own(plain, tmp_path)


def test_another_teacher_does_not_replace_what_that_of_the_recipe_gave(tmp_path: Path) -> None:
    shipped = next(r for r in read_records(results_dir()) if r.recipe == "resnet8_qat_w4a4" and r.seed == 0)
    write_record(shipped, tmp_path)
    require_own(compose(["recipe=resnet8_qat_w4a4"]), tmp_path)
    mine = compose(["recipe=resnet8_qat_w4a4", f"teacher.weights.sources.0.sha256={'1' * 64}"])
    with pytest.raises(RecipeError, match=r"this run takes other float weights, and would replace .*-tflite\.json"):
        require_own(mine, tmp_path)


@pytest.mark.parametrize("seed", [0, 1])
def test_a_float_training_from_a_changed_recipe_does_not_replace_the_recipes_own(tmp_path: Path, seed: int) -> None:
    name = f"resnet8_float{f'-seed{seed}' if seed else ''}.json"
    (tmp_path / "weights").mkdir()
    shutil.copy(results_dir() / "weights" / name, tmp_path / "weights" / name)
    plain = compose(["recipe=resnet8_float", f"seed={seed}"])
    require_own(plain, tmp_path)
    with pytest.raises(
        RecipeError, match=rf"changed recipe, and would replace .*{name}; give it another output=DIR or name=NAME"
    ):
        require_own(plain | {"images": 256}, tmp_path)
    assert Earlier.read(tmp_path / "weights" / name).is_of(plain)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "weights"}, "'weights' is a folder that holds other results"),
        ({"threads": 100_000}, r"threads must be in 1\.\.1024"),
        ({"seed": 10**15}, r"seed in 0\.\.4294967295"),
        ({"images": 0}, "images: must be positive, got 0"),
        ({"test_limit": 0}, "test_limit: must be positive, got 0"),
        ({"tolerance": {"top1": -3.0}}, r"tolerance: must be points in 0\.\.100"),
        ({"tolerance": {"top1": float("nan")}}, r"tolerance\.top1: expected a finite number, got nan"),
        ({"steps": ["quantize", {"train": {"lr": float("inf")}}]}, r"steps\[1\]\.train\.lr: expected a finite number"),
    ],
)
def test_fields_that_no_run_can_have_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe.parse(compose(["recipe=resnet8_fashion_w4a4"]) | change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"description": "costs ${5 a piece"}, "recipe: cannot be written as YAML"),
        ({"data": {"name": "f", "reader": "fake", "args": {"size": 28, "channels": 1, "n": 2**40}}}, "more than 4,294"),
        ({"data": {"name": "f", "reader": "image_folder", "args": {"root": 5}}}, r"data\.args\.root: must be a text"),
    ],
)
def test_what_would_end_a_run_late_ends_it_at_once(
    change: dict[str, object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "execute", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(ZooError, match=message):
        pipeline.run(compose(SMALL) | change, output=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_name_of_a_data_set_that_no_file_can_have_is_refused_before_any_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = replace(load_split(build(DataConfig, compose(SMALL)["data"], "data"), "test", 50), name="my/pictures")
    monkeypatch.setattr(pipeline, "load_split", lambda *_: split)
    monkeypatch.setattr(pipeline, "execute", lambda *_: pytest.fail("a step was taken"))
    with pytest.raises(RecipeError, match="data: 'my/pictures' cannot be part of a record's file name"):
        pipeline.run(compose(SMALL), output=tmp_path)


def test_a_run_that_ends_while_it_is_measured_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        assert (tmp_path / "resnet8_fashion_w4a4" / "unverified" / "manifest.json").is_file()
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(compose(SMALL), output=tmp_path)
    assert not (tmp_path / "resnet8_fashion_w4a4").exists()


def test_changed_float_weights_do_not_replace_those_that_other_recipes_start_from() -> None:
    done = command(["recipe=resnet8_float", "steps.0.train.epochs=1"])
    assert done.returncode == 2 and "would replace" in done.stderr and "resnet8_float.json" in done.stderr


def test_a_network_without_weights_is_quantized_too(tmp_path: Path) -> None:
    done = command([*SMALL, "model=resnet8_fashion_untrained", f"output={tmp_path}"])
    assert done.returncode == 0, done.stderr
    (record,) = (json.loads(p.read_text()) for p in (tmp_path / "resnet8_fashion_w4a4").glob("*.json"))
    assert record["float_bytes"] > record["weights_bytes"] > 0


def test_labels_of_another_number_are_refused_before_any_work(tmp_path: Path) -> None:
    done = command([*SMALL, "model.labels=imagenet", f"output={tmp_path}"])
    assert done.returncode == 2
    assert "model.labels: imagenet names 1000 classes, fashion-mnist-5k-test has 10" in done.stderr


def test_publishing_fields_without_publishing_are_refused() -> None:
    done = command(["recipe=resnet8_fashion_w4a4", "hub.repo=org/name"])
    assert done.returncode == 2 and "hub.repo: nothing is published without hub.publish=true" in done.stderr


def test_what_git_cannot_tell_or_does_not_track_counts_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "zoo").mkdir()
    monkeypatch.setattr(pipeline, "__file__", str(tmp_path / "zoo" / "pipeline.py"))
    assert pipeline.git_state() == Git("unknown", False)
    who = ["-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false"]
    (tmp_path / "zoo" / "a.py").write_text("")
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    clean = pipeline.git_state()
    assert len(clean.commit) == 40 and not clean.dirty and clean.text() == clean.commit
    (tmp_path / "zoo" / "b.py").write_text("")
    assert pipeline.git_state() == Git(clean.commit, True)
    (tmp_path / "zoo" / "b.py").unlink()
    (tmp_path / "zoo" / "a.py").write_text("x = 1\n")
    assert pipeline.git_state().text() == f"{clean.commit} with changes"
    monkeypatch.setenv("PATH", os.devnull)
    assert pipeline.git_state() == Git("unknown", True)


def test_the_checkout_is_where_runs_write() -> None:
    from zoo.paths import output_dir

    assert output_dir() == ROOT / "results"
