"""Hostile recipes: each is parsed to plain data or refused in one line, and names no code but ours."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import NAMES, NUMBERS, value
from tests.fuzz.watch import watching
from zoo.errors import ModelError, RecipeError, ZooError
from zoo.models import from_timm
from zoo.paths import recipes_dir, results_dir
from zoo.pipeline import dry
from zoo.recipe import ends_in_float
from zoo.recipe_file import parse_recipe, read_recipe
from zoo.run import main

CASES = int(os.environ.get("ZOO_FUZZ_CASES", "2000"))
SHIPPED = sorted(results_dir().glob("*/checkpoint/recipe.yaml"))
FRAGMENTS = (
    "&a ", "*a", "!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!foreign x", "? [a]\n: b",
    "<<: {a: 1}", "- " * 400, "[" * 400, "%TAG ! tag:yaml.org,2002:python/", "---\n", "\t", "_target_: os.system",
    "${oc.env:HOME}", "2024-99-99", "name: twice\n", "0x", "\x07", "\u2028", ".nan", "1e999", "!!binary x", "!!set {a}",
)  # fmt: skip


def test_shipped_recipes_are_read_as_yaml_reads_them() -> None:
    assert len(SHIPPED) > 5
    for path in SHIPPED:
        fields = read_recipe(path)
        assert fields == yaml.safe_load(path.read_text())
        dry(fields)


def _change(fields: Any, r: Random) -> None:
    here = fields
    for _ in range(r.randrange(1, 6)):
        if not isinstance(here, (dict, list)) or not here:
            return
        key = r.randrange(len(here)) if isinstance(here, list) else r.choice(sorted(here))
        if isinstance(here[key], (dict, list)) and r.randrange(3):
            here = here[key]
            continue
        kind = r.randrange(4)
        if kind == 0:
            del here[key]
        elif kind == 1 and isinstance(here, dict):
            here[r.choice(("_target_", "checkpoint_path", "callable", "__class__", *NAMES))] = value(r)
        else:
            here[key] = r.choice(
                (value(r), "os.system", "zoo.run", "../steps/gptq", "_walk", "__init__", r.choice(NUMBERS))
            )
        return


@settings(max_examples=CASES // 4, deadline=None, database=None, derandomize=CASES == 2000,
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.randoms(use_true_random=False))
def test_a_changed_recipe_is_parsed_or_refused(r: Random) -> None:
    path = SHIPPED[r.randrange(len(SHIPPED))]
    text = path.read_text()
    if r.randrange(2):
        place = r.randrange(len(text))
        text = text[:place] + r.choice(FRAGMENTS) + text[place + r.choice((0, 0, 1, 40)) :]
    else:
        fields = yaml.safe_load(text)
        for _ in range(r.choice((1, 1, 3))):
            _change(fields, r)
        text = yaml.safe_dump(fields)
    with watching(recipes_dir()) as seen:
        try:
            found = parse_recipe(text, "recipe.yaml")
            assert found == yaml.safe_load(text)
            ends_in_float(found)
            dry(found)
        except ZooError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 2000, repr(str(error))
    assert seen == []


HOSTILE = {
    "billion laughs": ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "anchors"),
    "itself": ("a: &a\n  b: *a\n", "anchors"),
    "merge": ("a: &a {b: 1}\nc:\n  <<: *a\n", "anchors"),
    "code": ("name: !!python/object/apply:os.system ['true']\n", "tag"),
    "tag": ("name: !mine x\n", "tag"),
    "set": ("steps: !!set {a, b}\n", "tag"),
    "twins": ("name: a\nname: b\n", "twice"),
    "inner twins": ("quant:\n  act: {bits: 8, bits: 4}\n", "twice"),
    "key": ("? [a, b]\n: 1\n", "not a text"),
    "depth": ("a: " + "[" * 100 + "]" * 100, "levels"),
    "list": ("- a\n", "fields of a recipe"),
    "documents": ("a: 1\n---\nb: 2\n", "YAML"),
    "control": ("a: \x07\n", "YAML"),
    "date": ("a: 2024-99-99\n", "YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused(case: str, tmp_path: Path) -> None:
    text, message = HOSTILE[case]
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message) as error:
        read_recipe(path)
    assert "\n" not in str(error.value)


def test_large_and_unreadable_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "large.yaml").write_text("a: 1\n" * 300_000)
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe")
    for name, message in (("large", "bytes"), ("bytes", "UTF-8"), ("absent", "cannot be read")):
        assert main([f"recipe={tmp_path / name}.yaml"]) == 2
        assert message in capsys.readouterr().err


def test_a_recipe_file_takes_no_further_fields(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"recipe={SHIPPED[0]}", "seed=1"]) == 2
    assert "seed=1" in capsys.readouterr().err
    assert main([f"recipe={SHIPPED[0]}", "check=true"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == read_recipe(SHIPPED[0])


def _with(**changes: Any) -> dict[str, Any]:
    fields = read_recipe(next(p for p in SHIPPED if "fashion_w8a8" in str(p)))
    return fields | changes


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc/x", "", ".hidden", "a b", "x" * 300, "a\n"])
def test_a_recipe_cannot_choose_its_folder(name: str) -> None:
    with pytest.raises(RecipeError, match="name"):
        dry(_with(name=name))


@pytest.mark.parametrize("path", ["../../secret.safetensors", "/etc/passwd", "a/../../b"])
def test_a_recipe_reads_weights_only_below_their_folders(path: str) -> None:
    for kind in ("package", "mirror"):
        model = _with()["model"]
        model["weights"] = {"sources": [{"kind": kind, "path": path, "sha256": "0" * 64}]}
        with pytest.raises(RecipeError, match="below its folder"):
            dry(_with(model=model))


@pytest.mark.parametrize("step", ["os.system", "zoo.steps.gptq", "_walk", "__init__", "../run", "subprocess"])
def test_a_step_is_a_file_of_ours(step: str) -> None:
    with pytest.raises(RecipeError, match="unknown"):
        dry(_with(steps=[{step: {}}]))


def test_timm_loads_no_weights_behind_the_hashes(tmp_path: Path) -> None:
    for field in ("checkpoint_path", "pretrained_cfg", "pretrained"):
        with pytest.raises(ModelError, match=field):
            from_timm.build("resnet18", **{field: str(tmp_path / "evil.pth")})
