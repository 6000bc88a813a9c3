"""A processor that only imitates bfloat16 is told of before a recipe that asks for it starts."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from tests.test_run import SMALL
from zoo import precision
from zoo.compose import compose
from zoo.pipeline import run
from zoo.recipe import Recipe
from zoo.training import train_float

CPUINFO = Path("/proc/cpuinfo")


def imitates(monkeypatch: pytest.MonkeyPatch, *, gpu: bool = False) -> None:
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)


def test_the_note_names_the_fields_and_they_silence_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imitates(monkeypatch)
    run(compose(SMALL), output=tmp_path)
    told = capsys.readouterr().err
    assert told.startswith("note: resnet8_fashion_w4a4: ") and told.count("\n") == 1
    changes = [word for word in told.split() if word.startswith("++")]
    assert changes == ["++steps.5.distill.bf16=false"]
    assert not precision.imitated(Recipe.parse(compose([*SMALL, *changes])))


def test_a_float_training_is_told_of_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    imitates(monkeypatch)
    small = ["recipe=resnet8_fashion_float", "images=256", "test_limit=50", "++steps.0.train.epochs=1"]
    train_float(compose(small), output=tmp_path)
    told = capsys.readouterr().err
    change = next(word for word in told.split() if word.startswith("++"))
    assert change == "++steps.0.train.bf16=false" and not precision.imitated(Recipe.parse(compose([*small, change])))


def test_a_processor_with_bfloat16_and_a_gpu_that_trains_need_no_note(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, tuned = (Recipe.parse(compose([f"recipe={name}"])) for name in ("resnet8_qat_w4a4", "resnet8_w4a4"))
    imitates(monkeypatch)
    assert precision.imitated(trained) and precision.imitated(tuned)
    imitates(monkeypatch, gpu=True)  # distill stays on the processor
    assert not precision.imitated(trained) and precision.imitated(tuned)
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: True)
    assert not precision.imitated(tuned)


@pytest.mark.skipif(platform.machine() != "x86_64" or not CPUINFO.exists(), reason="reads the flags of x86 on Linux")
def test_which_processors_multiply_bfloat16() -> None:
    flags = set(next(line for line in CPUINFO.read_text().splitlines() if line.startswith("flags")).split())
    can = {"avx512bw", "avx512vl", "avx512dq"} <= flags or "avx_ne_convert" in flags
    assert precision.multiplies_bfloat16() == can
