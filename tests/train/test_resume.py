"""A killed training goes on where it was, to the same bits; a snapshot of anything else is not taken."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from tests.compiler import needs_compiler
from tests.train import interrupted as training
from tests.train.interrupted import SETTINGS, train
from zoo.context import Images
from zoo.graph.trace import trace
from zoo.preprocess import Preprocess
from zoo.train import loop
from zoo.train.checkpoint import Snapshots, identity_of, wiring

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_killed_twice_it_ends_in_the_bytes_of_an_uninterrupted_run(tmp_path: Path) -> None:
    # in the first epoch, then in the last one
    for step in (2, 8):
        code = [sys.executable, "-m", "tests.train.interrupted", str(tmp_path), str(step)]
        assert subprocess.run(code, cwd=ROOT, check=False).returncode == -signal.SIGKILL
        (folder,) = tmp_path.iterdir()
        assert f"step-{step - 1:09d}.json" in {p.name for p in folder.iterdir()}
        assert len(list(folder.glob("step-*.json"))) in (1, 2)
    spent = json.loads(max(folder.glob("step-*.json")).read_text())["seconds"]
    resumed, ctx = train(tmp_path, SETTINGS)
    whole, plain = train(None, SETTINGS)
    assert save(resumed) == save(whole)
    # a record's time is that of all runs together
    assert ctx.earlier == spent > 0 and plain.earlier == 0


def interrupted(
    work: Path,
    settings: dict[str, object],
    at: int,
    monkeypatch: pytest.MonkeyPatch,
    quantized: bool = True,
    residual: bool = False,
) -> None:
    """Leave snapshots of a training that stopped."""

    class Stop(Exception):
        pass

    write = loop.Loop.save

    def fatal(self: loop.Loop) -> None:
        write(self)
        if self.step == at:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(loop, "SAVE_SECONDS", 0.0)
        patch.setattr(loop.Loop, "save", fatal)
        with pytest.raises(Stop):
            train(work, settings, quantized=quantized, residual=residual)


def resumed_at(
    work: Path, settings: dict[str, object], monkeypatch: pytest.MonkeyPatch, count: int = 64, residual: bool = False
) -> int:
    """Return the step that a training starts from."""
    seen: list[int] = []
    advance = loop.Loop._advance
    with monkeypatch.context() as patch:
        patch.setattr(loop.Loop, "_advance", lambda self, step: (seen.append(step), advance(self, step))[1])
        train(work, settings, count, residual=residual)
    return seen[0]


def test_only_a_snapshot_of_the_same_training_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, SETTINGS, 4, monkeypatch)
    assert resumed_at(tmp_path, SETTINGS | {"lr": 0.03}, monkeypatch) == 0
    assert resumed_at(tmp_path, SETTINGS, monkeypatch, count=80) == 0
    assert resumed_at(tmp_path, SETTINGS, monkeypatch) == 4


def test_a_damaged_snapshot_falls_back_to_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted(tmp_path, SETTINGS, 5, monkeypatch)
    newest = max(tmp_path.glob("*/step-*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:-1])
    assert resumed_at(tmp_path, SETTINGS, monkeypatch) == 4


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, "identity")
    for step in (1, 2, 3):
        snapshots.save(step, {"w": torch.full((2,), float(step))}, {"fact": step})
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"step-{step:09d}.{end}" for step in (2, 3) for end in ("json", "safetensors")
    ]
    found = snapshots.latest()
    assert found is not None and found[1]["fact"] == 3 and found[0]["w"].tolist() == [3.0, 3.0]
    assert Snapshots(tmp_path, "another").latest() is None


def test_a_training_that_goes_on_names_every_commit_that_had_a_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = training.context

    def by(code: str) -> None:
        monkeypatch.setattr(training, "context", lambda *given: replace(plain(*given), code=code))

    for code, step in (("first", 2), ("second", 4), ("second", 6)):
        by(code)
        interrupted(tmp_path, SETTINGS, step, monkeypatch)
    by("third with changes")
    _, ctx = train(tmp_path, SETTINGS)
    assert ctx.log["train"]["commits"] == ["first", "second", "third with changes"]
    older = Snapshots(tmp_path, "identity", "now")
    older.go_on({"step": 1})
    assert older.codes == ["unknown", "now"]


@pytest.mark.parametrize(
    "more",
    [
        # most weights come to be held
        {"freeze": {"start": 0.1, "low": 0.2, "high": 0.2, "momentum": 0.1}, "quantizer": "tqt", "lr": 1.0},
        {"sparsify": {"kind": "2:4"}, "ema": 0.9},
        {"sparsify": {"kind": "magnitude", "until": 0.8}},
        {"standardize": True, "quantizer": "lsq_plus", "optimizer": "adamw", "lr": 0.001},
        {"quantizer": "pact", "oscillations": True},
        pytest.param({"native": True, "bf16": True}, marks=needs_compiler),
    ],
    ids=lambda more: next(iter(more)),
)
def test_every_state_is_in_the_snapshot(
    more: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 12, "batch": 16, "lr": 0.02, "holdout": 16, "patience": 99} | more
    residual = settings.get("quantizer") == "lsq_plus"  # which has an offset then
    interrupted(tmp_path, settings, 20, monkeypatch, residual=residual)
    assert resumed_at(tmp_path, settings, monkeypatch, residual=residual) == 20
    resumed, ctx = train(tmp_path, settings, residual=residual)
    whole, plain = train(None, settings, residual=residual)
    assert save(resumed) == save(whole)
    assert ctx.log == plain.log
    assert ("freeze" in more) == (ctx.log["train"].get("frozen_percent", 0) > 0)


@needs_compiler
def test_a_float_network_with_fused_layers_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, object] = {"epochs": 3, "batch": 16, "lr": 0.02, "native": True, "ema": 0.9, "patience": 99}
    interrupted(tmp_path, settings, 4, monkeypatch, quantized=False)
    resumed, ctx = train(tmp_path, settings, quantized=False)
    whole, plain = train(None, settings, quantized=False)
    assert ctx.earlier > 0 == plain.earlier
    assert save(resumed) == save(whole)


def test_a_snapshot_of_other_preprocessing_or_wiring_is_another_training() -> None:
    pixels = torch.zeros(4, 8, 8, 3, dtype=torch.uint8).numpy()
    plain = {"size": (8, 8), "mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)}
    digests = {Images(pixels, Preprocess.from_dict(plain | more)).digest() for more in ({}, {"std": (1.0, 1.0, 1.0)})}
    assert len(digests) == 2
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.ReLU())
    nets = [trace(torch.nn.Sequential(*layers), torch.zeros(1, 3, 8, 8)),
            trace(torch.nn.Sequential(*reversed(layers)), torch.zeros(1, 3, 8, 8)),
            trace(torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3, padding=1, stride=2), torch.nn.ReLU()),
                  torch.zeros(1, 3, 8, 8))]  # fmt: skip
    assert len({identity_of(wiring(net)) for net in nets}) == 3
    assert identity_of(wiring(nets[0])) == identity_of(wiring(trace(layers, torch.zeros(1, 3, 8, 8))))
