"""Two processes that share every batch learn what one process learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.train.parallel import SETTINGS, result

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def torchrun(*words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([*TORCHRUN, *words], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder with what two processes learned.

    Few steps: later a sum of another order may flip a code, and the two trainings part.
    """
    out = tmp_path_factory.mktemp("parallel")
    done = torchrun("-m", "tests.train.parallel", str(out))
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", SETTINGS)
def test_both_processes_hold_the_same_bytes(kind: str, both: Path) -> None:
    first, second = (both / f"{kind}.{rank}.safetensors" for rank in (0, 1))
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("kind", ["lsq", "lsq_plus", "tqt"])
def test_the_curve_and_the_state_are_those_of_one_process(kind: str, both: Path) -> None:
    alone, rows, log = result(kind)
    found = json.loads((both / f"{kind}.json").read_text())
    assert found["log"].pop("processes") == 2
    assert found["log"]["steps"] == log["steps"] == 6
    for one, two in zip(rows, found["rows"], strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
        assert (two["accuracy"], two["holdout"], two["lr"]) == (one["accuracy"], one["holdout"], one["lr"])
    # more apart than the two trainings may be
    assert rows[0]["loss"] != pytest.approx(rows[1]["loss"], rel=5e-4)
    state = load_file(both / f"{kind}.0.safetensors")
    assert state.keys() == alone.keys()
    assert any("running" in name for name in alone) and any(name.endswith("scale") for name in alone)
    for name, tensor in alone.items():
        assert torch.allclose(state[name].double(), tensor.double(), rtol=2e-3, atol=1e-5), name


def test_oscillating_weights_freeze_and_the_start_is_that_of_one_process(both: Path) -> None:
    _, rows, log = result("oscillation")
    found = json.loads((both / "oscillation.json").read_text())
    # at this rate a sum of another order soon flips a code, so only the start is compared closely
    assert found["rows"][0]["loss"] == pytest.approx(rows[0]["loss"], rel=1e-4)
    assert 0 < log["frozen_percent"] < 50 and 0 < found["log"]["frozen_percent"] < 50


RECIPE = ["recipe=resnet8_fashion_float", "images=256", "test_limit=100", "steps.0.train.epochs=2"]


def test_the_command_line_trains_by_two_processes_and_writes_once(tmp_path: Path) -> None:
    words = ["-m", "zoo.run", *RECIPE, f"output={tmp_path}"]
    done = torchrun(*words)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("top-1 on 100 images") == 1
    notes = json.loads((tmp_path / "weights" / "resnet8_fashion_float.json").read_text())
    assert notes["log"]["train"]["processes"] == 2
    assert not [p.name for p in (tmp_path / "weights").iterdir() if p.name.startswith(".")], "nothing is left"


def test_a_batch_that_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    done = torchrun("-m", "zoo.run", *RECIPE, "steps.0.train.batch=63", f"output={tmp_path}")
    assert done.returncode != 0
    assert "error: train.batch: 63 images cannot be shared by 2 processes; choose a multiple" in done.stderr


def test_processes_with_folders_of_their_own_do_not_go_on_from_different_steps(tmp_path: Path) -> None:
    (tmp_path / "apart.py").write_text(
        "import os, sys\nfrom zoo.train import loop\nfrom zoo.run import main\nloop.SAVE_SECONDS = 0.0\n"
        "run, stop = loop.Loop._advance, int(sys.argv[1])\n"
        "def advance(self, step):\n    if step == stop: raise KeyboardInterrupt\n    run(self, step)\n"
        "loop.Loop._advance = advance\n"
        "sys.exit(main([*sys.argv[2:], f'output={os.path.dirname(__file__)}/{os.environ[\"RANK\"]}']))\n"
    )
    for stop in ("3", "99"):
        done = torchrun(str(tmp_path / "apart.py"), stop, *RECIPE)
        assert done.returncode != 0
    assert "go on from different steps; give them one folder of results" in done.stderr


def test_two_processes_killed_go_on_to_the_same_bytes(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom zoo.train import loop\nfrom zoo.run import main\n"
        "loop.SAVE_SECONDS = 0.0\nsys.exit(main(sys.argv[1:]))\n"
    )
    (tmp_path / "often.py").write_text(code)
    (tmp_path / "fatal.py").write_text(
        "import os, signal\nfrom zoo.train.loop import Loop\nsave = Loop.save\n"
        "def fatal(self):\n    save(self)\n    if self.step == 5: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Loop.save = fatal\n" + code
    )
    weights = []
    for name, scripts in (("killed", ("fatal.py", "often.py")), ("whole", ("often.py",))):
        for script in scripts:
            done = torchrun(str(tmp_path / script), *RECIPE, f"output={tmp_path / name}")
            assert (done.returncode == 0) == (script == "often.py"), done.stderr
        weights.append((tmp_path / name / "weights" / "resnet8_fashion_float.safetensors").read_bytes())
    assert weights[0] == weights[1]
