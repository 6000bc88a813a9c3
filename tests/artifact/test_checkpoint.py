from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import zoo
from tests.artifact.conftest import sign
from tests.networks import images
from zoo.artifact import checkpoint, files
from zoo.artifact.checkpoint import Network
from zoo.errors import ArtifactError, DataError
from zoo.paths import results_dir

ROOT = Path(__file__).resolve().parents[2]
Damage = Callable[..., Path]


@torch.no_grad()
def test_what_is_loaded_is_what_was_saved(network: Network, folder: Path) -> None:
    x = images(16)
    read = checkpoint.read(folder)
    assert read.program.tensors.keys() == network.program.tensors.keys()
    assert all(torch.equal(t, read.program.tensors[n]) for n, t in network.program.tensors.items())
    assert read.program.nodes == network.program.nodes
    assert torch.equal(zoo.load(folder, integer=True)(x), network(x))
    before = checkpoint.Checkpoint(network.program, network.config, "", {}).network()
    assert torch.equal(zoo.load(folder)(x), before(x))


def test_saving_again_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    zoo.load(folder).save(tmp_path / "again")
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_size_is_that_of_the_codes(network: Network, folder: Path) -> None:
    bits = 0
    for node in network.program.nodes:
        if node.weight is not None:
            weight = network.program.tensors[f"{node.name}.weight"]
            bits += weight.numel() * node.weight.bits + 64 * len(weight)
    # 78,666 parameters; the header of a file this small is what the margin is for
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert (folder / "model.safetensors").stat().st_size - header <= 1.05 * bits / 8


@pytest.mark.parametrize("name", zoo.list_checkpoints())
def test_shipped_checkpoints_load_and_keep_to_their_size(name: str) -> None:
    folder = results_dir() / name / "checkpoint"
    net = zoo.load(name, integer=True)
    ideal = 0.0
    for node in net.program.nodes:
        if node.weight is not None:
            weight = net.program.tensors[f"{node.name}.weight"]
            ideal += weight.numel() * node.weight.bits / 8 + 8 * len(weight)
    size = (folder / "model.safetensors").stat().st_size
    header = 8 + int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little")
    assert size - header <= 1.05 * ideal
    assert net.labels and net.card.startswith("---")
    height, width = net.preprocess.size
    channels = net.program.input_shape[0]
    grey = Image.fromarray(np.full((height + 9, width + 5), 128, np.uint8))
    x = net.preprocess(grey if channels == 1 else grey.convert("RGB"))
    assert tuple(net(x[None]).shape) == (1, len(net.labels))


def test_an_input_of_another_size_is_refused(network: Network) -> None:
    with pytest.raises(DataError, match=r"must be \[N, 3, 16, 16\]"):
        network(torch.zeros(1, 3, 8, 8))


def test_every_flipped_file_is_noticed(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            if path.name == files.MANIFEST and place == len(content) - 1:
                continue  # white space after the JSON
            with pytest.raises(ArtifactError):
                checkpoint.read(folder)
        path.write_bytes(content)
    checkpoint.read(folder)


def test_missing_files_and_folders_are_named(folder: Path, tmp_path: Path) -> None:
    for name in ("model.safetensors", "config.json", "recipe.yaml", files.MANIFEST):
        copy = tmp_path / "copy"
        shutil.copytree(folder, copy)
        (copy / name).unlink()
        with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
            checkpoint.read(copy)
        shutil.rmtree(copy)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="not a checkpoint folder"):
        zoo.load(tmp_path / "empty")
    with pytest.raises(ArtifactError, match=r"resnet8_w8b8.*resnet8_w8a8"):
        zoo.load("resnet8_w8b8")


def test_cut_weights_are_refused_behind_a_valid_hash(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    for length in (0, 4, 100, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        sign(folder)
        with pytest.raises(ArtifactError, match="safetensors"):
            checkpoint.read(folder)


def _drop(tensors: dict[str, Any]) -> None:
    del tensors["fc.bias"]


TENSORS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "missing": (_drop, r"fc\.bias.*missing"),
    "extra": (lambda t: t.update(more=torch.zeros(3)), "more.*no node"),
    "shape": (lambda t: t.update({"fc.bias": torch.zeros(11, dtype=torch.int32)}), r"fc\.bias.*\[11\]"),
    "type": (lambda t: t.update({"fc.bias": torch.zeros(10)}), r"fc\.bias.*int32"),
    "packed type": (lambda t: t.update({"fc.weight_packed": t["fc.weight_packed"].float()}), r"fc\.weight_packed"),
    "nan scale": (lambda t: t["fc.weight_scale"].fill_(float("nan")), r"fc\.weight_scale.*positive"),
    "zero scale": (lambda t: t["fc.weight_scale"].fill_(0), r"fc\.weight_scale.*positive"),
    "negative scale": (lambda t: t["fc.weight_scale"].fill_(-1), r"fc\.weight_scale.*positive"),
    "zero point": (lambda t: t["block3.conv2.weight_zero_point"].fill_(9), r"block3\.conv2\.weight_zero_point"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_wrong_tensors_are_refused(case: str, damage: Damage) -> None:
    change, message = TENSORS[case]
    with pytest.raises(ArtifactError, match=message):
        checkpoint.read(damage(tensors=change))


def _node(node: str, /, **fields: Any) -> Callable[[Any], object]:
    def change(config: Any) -> None:
        next(n for n in config["nodes"] if n["name"] == node).update(fields)

    return change


CONFIGS: dict[str, tuple[Callable[[Any], object], str]] = {
    "version": (lambda c: c.update(format_version=2), "format_version 2"),
    "field missing": (lambda c: c.pop("labels"), "'labels' is missing"),
    "field unknown": (lambda c: c.update(code="x"), "'code' is unknown"),
    "semantics": (lambda c: c.update(semantics="os"), "semantics 'os'"),
    "labels": (lambda c: c.update(labels=[1, 2]), "labels"),
    "preprocess": (lambda c: c["preprocess"].update(std=[0.0, 0.0, 0.0]), "preprocess"),
    "no nodes": (lambda c: c.update(nodes=[]), "nodes"),
    "operation": (_node("add", op="system"), "operation 'system'"),
    "operation type": (_node("add", op=["add"]), "operation"),
    "cycle": (_node("add", inputs=["add", "add"]), "earlier nodes"),
    "arity": (_node("add", inputs=["input"]), "takes 2 inputs"),
    "name": (_node("fc", name="../fc"), "dotted identifier"),
    "scale": (_node("add", out={"bits": 8}), "out"),
    "huge image": (lambda c: c.update(input_shape=[3, 10**9, 10**9]), "input_shape"),
    "image": (lambda c: c.update(input_shape=[5, 16, 16]), "do not fit together"),
    "bits": (lambda c: c["nodes"][1]["weight"].update(bits=1), "bits"),
    "huge weight": (lambda c: c["nodes"][1]["weight"].update(shape=[10**6, 10**6, 1, 1]), "beyond any edge network"),
    "attribute": (lambda c: c["nodes"][1]["attrs"].update(groups=[1]), "groups"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_wrong_configurations_are_refused(case: str, damage: Damage) -> None:
    change, message = CONFIGS[case]
    with pytest.raises(ArtifactError, match=message):
        checkpoint.read(damage(config=change))


@pytest.mark.parametrize("text", ['{"a": 1, "a": 2}', '{"a": NaN}', "[" * 100_000, "", "{", "[1]"])
def test_malformed_json_is_refused(text: str, folder: Path) -> None:
    (folder / "config.json").write_text(text)
    sign(folder)
    with pytest.raises(ArtifactError, match=r"config\.json"):
        checkpoint.read(folder)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "link"])
def test_a_manifest_cannot_name_files_elsewhere(name: str, folder: Path) -> None:
    (folder.parent / "outside").write_text("x")
    (folder / "link").symlink_to(folder.parent / "outside")
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest["files"][name] = {"sha256": files.sha256(folder.parent / "outside"), "size": 1}
    (folder / files.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=r"missing|not a file of this folder"):
        checkpoint.read(folder)


def test_a_full_disk_leaves_the_old_checkpoint(network: Network, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args: Any, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="No space left"):
        network.save(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from zoo.artifact import files
moment, calls = int(sys.argv[2]), 0
def counted(name):
    real = getattr(os, name)
    def call(*args, **more):
        global calls
        calls += 1
        if calls == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **more)
    setattr(os, name, call)
for name in ("replace", "fsync", "mkdir", "chmod"):
    counted(name)
def fill(place):
    for path in Path(sys.argv[1]).iterdir():
        if path.name != files.MANIFEST:
            shutil.copyfile(path, place / path.name)
files.write_folder(Path(sys.argv[3]), fill)
"""


def test_killed_while_saving_the_folder_is_whole(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    shutil.copytree(folder, target)
    for moment in range(1, 40):
        done = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(moment), str(target)], cwd=ROOT, capture_output=True,
            text=True,
        )  # fmt: skip
        if done.returncode == 0:
            assert moment > 5, "the moments were not reached"
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        if target.exists():
            checkpoint.read(target)
    else:
        pytest.fail("saving never came to its end")
    checkpoint.read(target)
