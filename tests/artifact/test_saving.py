"""Saving: whole or not at all, nothing else is lost, and every refusal is one line."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import zoo
from tests.networks import images
from zoo.artifact import checkpoint, files, placing
from zoo.artifact.checkpoint import Network
from zoo.errors import ArtifactError

ROOT = Path(__file__).resolve().parents[2]


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def refusal(network: Network, folder: Path) -> str:
    with pytest.raises(ArtifactError) as error:
        network.save(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("call", range(12))
@pytest.mark.parametrize("there", [True, False])
def test_a_full_disk_leaves_what_was_there(
    call: int, there: bool, network: Network, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = folder if there else folder.parent / "fresh"
    before = content(folder)
    calls = 0

    def fail_after(real: Callable[..., Any]) -> Callable[..., Any]:
        def full(*args: Any, **more: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > call:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*args, **more)

        return full

    for owner, name in ((os, "mkdir"), (Path, "write_bytes"), (os, "fsync")):
        monkeypatch.setattr(owner, name, fail_after(getattr(owner, name)))
    assert "No space left" in refusal(network, target)
    assert content(folder) == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_a_save_that_takes_the_place_of_another_leaves_no_trace(network: Network, folder: Path) -> None:
    inode = folder.stat().st_ino
    network.save(folder)
    assert folder.stat().st_ino != inode
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]
    assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {0o666 & ~_umask()}


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@contextlib.contextmanager
def as_user() -> Iterator[None]:
    """Drop the rights of root, which no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def test_a_place_without_permission_is_refused(network: Network, open_folder: Path) -> None:
    open_folder.chmod(0o555)
    with as_user():
        assert "Permission denied" in refusal(network, open_folder / "net")
    open_folder.chmod(0o755)
    assert list(open_folder.iterdir()) == []


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "manifest.json"])
def test_an_unreadable_file_is_refused(name: str, network: Network, open_folder: Path) -> None:
    network.save(open_folder / "net")
    (open_folder / "net" / name).chmod(0)
    with as_user(), pytest.raises(ArtifactError, match="Permission denied") as error:
        checkpoint.read(open_folder / "net")
    assert name in str(error.value)


def test_saving_keeps_a_readme_of_ones_own(network: Network, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("my notes")
    assert "no manifest.json says that it is a checkpoint's" in refusal(network, tmp_path / "mine")
    assert (tmp_path / "mine" / "README.md").read_text() == "my notes"


def test_saving_never_deletes_what_is_no_checkpoint(network: Network, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    (photos / "deep").mkdir(parents=True)
    (photos / "deep" / "cat.png").write_bytes(b"cat")
    assert "cat.png" in refusal(network, photos)
    assert (photos / "deep" / "cat.png").read_bytes() == b"cat"
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert "is a file" in refusal(network, notes)
    assert "cannot be written" in refusal(network, notes / "net")
    assert notes.read_text() == "mine"


def test_a_file_added_to_a_checkpoint_is_not_lost(network: Network, folder: Path) -> None:
    (folder / "mine.txt").write_text("x")
    assert "mine.txt" in refusal(network, folder)
    assert (folder / "mine.txt").exists()


FOREIGN = {
    "a browser extension": {
        "manifest.json": '{"manifest_version": 3, "name": "mine"}', "README.md": "mine", "config.json": "{}",
    },
    "a list of its own": {
        "manifest.json": '{"files": {"src/main.js": "x", "thesis.tex": "y"}}', "src/main.js": "code", "thesis.tex": "t",
    },
    "a list of another version, beside weights": {
        "manifest.json": '{"format_version": 2, "files": {"model.safetensors": {}, "thesis.tex": {}}}',
        "model.safetensors": "weights", "config.json": "{}", "thesis.tex": "t",
    },
    "a list without weights": {
        "manifest.json": '{"format_version": 1, "files": {"config.json": {}, "thesis.tex": {}}}', "config.json": "{}",
        "thesis.tex": "t",
    },
    "weights without a manifest": {"model.safetensors": "weights", "config.json": "{}", "README.md": "mine"},
}  # fmt: skip


@pytest.mark.parametrize("case", FOREIGN)
def test_a_folder_of_another_program_is_not_lost(case: str, network: Network, tmp_path: Path) -> None:
    for name, text in FOREIGN[case].items():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text(text)
    assert "would be lost" in refusal(network, tmp_path / "mine")
    left = {p.relative_to(tmp_path / "mine").as_posix(): p.read_text()
            for p in (tmp_path / "mine").rglob("*") if p.is_file()}  # fmt: skip
    assert left == FOREIGN[case]


def test_what_a_checkpoints_own_manifest_lists_is_replaced(network: Network, folder: Path) -> None:
    (folder / "timm").mkdir()
    (folder / "timm" / "config.json").write_text("{}")
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest["files"]["timm/config.json"] = {"sha256": files.sha256(folder / "timm" / "config.json"), "size": 2}
    (folder / files.MANIFEST).write_text(json.dumps(manifest))
    checkpoint.read(folder)
    network.save(folder)
    checkpoint.read(folder)
    assert not (folder / "timm").exists()


def test_a_damaged_checkpoint_and_an_empty_folder_are_replaced(network: Network, folder: Path) -> None:
    (folder / "manifest.json").write_text("{")
    network.save(folder)
    checkpoint.read(folder)
    (folder.parent / "empty").mkdir()
    network.save(folder.parent / "empty")
    checkpoint.read(folder.parent / "empty")


def test_a_link_stays_a_link(network: Network, folder: Path) -> None:
    link = folder.parent / "link"
    link.symlink_to(folder)
    network.save(link)
    assert link.is_symlink() and sorted(p.name for p in folder.parent.iterdir()) == ["link", folder.name]
    zoo.load(link)


def test_what_json_cannot_hold_is_refused(network: Network, folder: Path) -> None:
    before = content(folder)
    config = dict(network.config)
    for change in ({"license": float("inf")}, {"license": "\ud800"}, {"license": {1}}):
        with pytest.raises(ArtifactError, match=r"config\.json"):
            checkpoint.save(folder, network.program, config | change, recipe="", metrics={}, card="")
    with pytest.raises(ArtifactError, match=r"metrics\.json"):
        checkpoint.save(folder, network.program, config, recipe="", metrics={"top1": float("nan")}, card="")
    with pytest.raises(ArtifactError, match="card"):
        checkpoint.save(folder, network.program, config, recipe="", metrics={}, card="\ud800")
    assert content(folder) == before


def test_other_hidden_folders_are_left_alone(network: Network, folder: Path) -> None:
    kept = [".small.tmp", ".small.notes.tmp", ".other.abcdefgh.tmp"]
    for name in [*kept, ".small.abcdefgh.tmp"]:
        (folder.parent / name).mkdir()
    network.save(folder)
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted([*kept, "small"])


def _killed(network: Network, folder: Path, way: str) -> list[str]:
    new = folder.parent / "new"
    checkpoint.save(new, network.program, network.config, recipe="", metrics={}, card="another\n")
    place = folder.parent / "place" / "net"
    done = subprocess.run(
        [sys.executable, "-m", "tests.artifact.killed", str(folder), str(new), str(place), way],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


@pytest.mark.slow
def test_killed_at_any_moment_the_old_or_the_new_checkpoint_is_there(network: Network, folder: Path) -> None:
    (folder.parent / "a").mkdir()
    (folder.parent / "b").mkdir()
    if not placing.exchange(folder.parent / "a", folder.parent / "b"):
        pytest.skip("this system cannot swap two folders in one step")
    found = _killed(network, folder, "swap")
    assert "none" not in found
    # one change, from old to new, with many moments on both sides
    turn = found.index("new")
    assert found == ["old"] * turn + ["new"] * (len(found) - turn)
    assert turn > 20 and len(found) - turn > 5


@pytest.mark.slow
def test_where_folders_cannot_be_swapped_a_kill_is_mended(network: Network, folder: Path) -> None:
    found = _killed(network, folder, "rename")
    assert found[0] == "old" and found[-1] == "new" and 1 <= found.count("none") <= 2


def test_files_without_end_are_refused_before_they_are_hashed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (folder / "extra").open("wb") as file:
        file.truncate(2**31)  # takes no space where the file system knows holes
    manifest = json.loads((folder / files.MANIFEST).read_text())
    manifest["files"]["extra"] = {"sha256": "0" * 64, "size": 1}
    (folder / files.MANIFEST).write_text(json.dumps(manifest))
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail(f"{path} was hashed"))
    with pytest.raises(ArtifactError, match="lists files of more than 2,147,483,648 bytes"):
        checkpoint.read(folder)


@pytest.mark.parametrize("integer", [True, False])
@pytest.mark.parametrize("tensor", ["weight", "bias"])
def test_a_changed_network_is_not_saved_as_what_it_was(
    folder: Path, tmp_path: Path, integer: bool, tensor: str
) -> None:
    net = zoo.load(folder, integer=integer)
    layer = net.graph_module.conv
    with torch.no_grad():
        getattr(layer, tensor).mul_(-1)
    with pytest.raises(ArtifactError, match=r"again: what conv of custom holds was changed.*zoo\.quantize") as error:
        net.save(tmp_path / "again")
    assert "\n" not in str(error.value) and not (tmp_path / "again").exists()
    with torch.no_grad():
        getattr(layer, tensor).mul_(-1)
    net.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_changed_range_table_type_or_layer_is_noticed(folder: Path, tmp_path: Path) -> None:
    def scale(net: Network) -> None:
        net.graph_module.conv.out.scale.data *= 2

    def layer(net: Network) -> None:
        net.graph_module.fc = torch.nn.Identity()

    def kind(net: Network) -> None:
        net.half()

    for change in (scale, layer, kind):
        net = zoo.load(folder)
        change(net)
        with pytest.raises(ArtifactError, match="was changed"):
            net.save(tmp_path / "again")


def test_a_changed_table_is_noticed(tmp_path: Path) -> None:
    torch.manual_seed(0)
    float_net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 1), torch.nn.Hardswish(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
        torch.nn.Linear(4, 2),
    )  # fmt: skip
    net = zoo.quantize(float_net.eval(), {"quant": {}, "steps": ["quantize", "calibrate", "integerize"]}, [images(64)])
    net.save(tmp_path / "made")
    table = next(n.name for n in net.program.nodes if n.op == "table")
    for integer in (True, False):
        loaded = zoo.load(tmp_path / "made", integer=integer)
        loaded.save(tmp_path / "again")
    net.graph_module.get_submodule(table).table[3] += 1
    with pytest.raises(ArtifactError, match=f"again: what {re.escape(table)} of custom holds was changed"):
        net.save(tmp_path / "again")


def test_moves_passes_and_copies_change_nothing_that_is_saved(folder: Path, tmp_path: Path) -> None:
    for integer in (True, False):
        net = zoo.load(folder, integer=integer)
        for part in (net, net.to("cpu"), net.train(), net.eval(), copy.deepcopy(net)):
            part(images(2))
            part.save(tmp_path / "again")
