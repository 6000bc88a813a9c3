"""Variants of a recipe: what they change, that a run is made once, and that records belong to today's recipes."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo import ablate
from zoo.errors import RecipeError
from zoo.paths import recipes_dir, results_dir
from zoo.recipe import Recipe, content_hash, named_weights
from zoo.results import read_records

FIELDS = {
    "steps": ["fold_batchnorm", {"train": {"epochs": 2}}, {"reestimate_batchnorm": {}}, {"train": {"lr": 0.1}}],
}
SMALL = """recipe: resnet8_fashion_w8a8
description: Small runs
why: So be it.
common: [images=600, test_limit=50]
variants:
  minmax: {}
  wrong: {train: {quantizer: tqt}}
  short:
    steps:
      - fold_batchnorm
      - quantize
      - calibrate: {act: minmax}
      - integerize
"""


def test_a_variant_changes_what_it_says_and_nothing_else() -> None:
    plain = ablate.Variant().apply(FIELDS, "x")["steps"]
    assert plain == [
        {"fold_batchnorm": {}},
        {"train": {"epochs": 2}},
        {"reestimate_batchnorm": {}},
        {"train": {"lr": 0.1}},
    ]
    changed = ablate.Variant(train={"quantizer": "tqt", "lr": 1.0}, without=("reestimate_batchnorm",)).apply(
        FIELDS, "x"
    )["steps"]
    assert changed[1:] == [
        {"train": {"epochs": 2, "quantizer": "tqt", "lr": 1.0}},
        {"train": {"quantizer": "tqt", "lr": 1.0}},
    ]
    assert FIELDS["steps"][1] == {"train": {"epochs": 2}}
    with pytest.raises(RecipeError, match=r"x: the recipe has no step fold_batchnrm; did you mean"):
        ablate.Variant(without=("fold_batchnrm",)).apply(FIELDS, "x")


@pytest.mark.parametrize("name", ablate.names())
def test_every_shipped_variant_is_a_recipe_and_no_two_are_alike(name: str) -> None:
    found = ablate.read(name)
    assert {*found.takes, *found.oscillations} <= set(found.variants) and name.startswith(found.recipe)
    hashes = set()
    for variant in found.variants:
        fields = ablate.resolve(name, variant, 0)
        Recipe.parse(fields)
        assert fields["data"]["reader"] == "held_out", "settings are chosen on held-out images only"
        hashes.add(content_hash(fields | {"name": ""}))
    assert len(hashes) == len(found.variants)


@pytest.mark.parametrize("name", ablate.names())
def test_records_are_those_of_todays_variants(name: str) -> None:
    for record in read_records(results_dir() / "ablations" / name):
        fields = ablate.resolve(name, record.recipe, record.seed)
        assert content_hash(fields) == record.recipe_sha256, record.file
        assert named_weights(fields["model"], record.parent.sha256), record.file
        assert named_weights(fields.get("teacher"), record.teacher_sha256), record.file


@pytest.mark.slow
def test_what_is_missing_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ablation").mkdir()
    (tmp_path / "ablation" / "small.yaml").write_text(SMALL)
    monkeypatch.setattr(ablate, "recipes_dir", lambda: tmp_path)
    words = ["small", f"output={tmp_path / 'out'}"]
    assert ablate.main([*words, "short"]) == 0
    first = capsys.readouterr().out
    (path,) = (tmp_path / "out" / "small" / "short").iterdir()
    before = path.stat().st_mtime_ns
    assert ablate.main([*words, "short", "minmax"]) == 0
    assert capsys.readouterr().out.startswith(first) and path.stat().st_mtime_ns == before
    records = read_records(tmp_path / "out" / "small")
    assert [r.recipe for r in records] == ["minmax", "short"]
    assert records[1].command == "python -m zoo.ablate small short seed=0"
    # a variant that cannot be made is told before anything is run
    assert ablate.main(words) == 2
    assert "no step train" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "said"), [
    (["resnet8_qat_w4a5"], "did you mean 'resnet8_qat_w4a4'"),
    (["resnet8_qat_w4a4", "tqd"], "did you mean 'tqt'"),
    (["resnet8_qat_w4a4", "seed=x"], "expected whole numbers"),
    (["resnet8_qat_w4a4", "sed=1"], "did you mean 'seed'"),
    (["seed=1"], "ablation '' is unknown"),
])  # fmt: skip
def test_wrong_words_are_refused_in_one_line(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate.main(words) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_help_names_the_ablations(capsys: pytest.CaptureFixture[str]) -> None:
    assert ablate.main([]) == 0
    told = capsys.readouterr().out
    assert all(p.stem in told for p in (recipes_dir() / "ablation").glob("*.yaml"))
