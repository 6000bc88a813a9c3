"""Kill -9 at every request and every rename: no moment leaves a wrong release or a wrong cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import NAME, Server, User
from tests.hub.test_faults import right
from zoo.artifact import files
from zoo.hub.folder import Folder

KILLED = -9


@pytest.mark.slow
def test_a_publisher_killed_at_any_moment(user: User, server: Server, small: dict[str, Path]) -> None:
    wanted = files.sha256(small["first"] / "model.safetensors")
    tagged = []
    for moment in range(400):
        repo = f"org/kill{moment}"
        killed = user.run("zoo.publish", str(small["first"]), f"repo={repo}", options={"kill": moment}).rc
        assert killed in (KILLED, 0)
        early = server.repo(repo)
        if early is not None and early["tags"]:
            tagged.append(moment)
        done = user.run("zoo.publish", str(small["first"]), f"repo={repo}")
        assert done.rc == 0, (moment, done.err)
        found = server.repo(repo)
        # one commit besides that of the new repository, and the tag names it, whichever of the two runs made them
        assert found is not None and found["tags"] == {"v1": found["head"]} and found["commits"] == 2
        entry = json.loads((user.home / "index.json").read_text())["checkpoints"][NAME]
        sent = {n: h for n, h in found["files"][found["head"]].items() if n != ".gitattributes"}
        assert entry["repo"] == repo and entry["commit"] == found["head"] and sent["model.safetensors"] == wanted
        assert {n: f["sha256"] for n, f in entry["files"].items()} == sent
        assert early is None or not early["tags"] or early["tags"] == found["tags"]
        if killed == 0:
            break
    assert moment >= 30
    assert tagged[0] > 15 and tagged == list(range(tagged[0], moment + 1)), "the tag comes late, and stays"
    assert user.cold().run("zoo.pull", f"{repo}@v1").rc == 0


@pytest.mark.slow
def test_a_publisher_to_a_folder_killed_at_any_moment(user: User, small: dict[str, Path], tmp_path: Path) -> None:
    for moment in range(400):
        hub, repo = Folder(tmp_path / "share"), f"org/kill{moment}"
        killed = user.run("zoo.publish", str(small["first"]), f"repo=file://{tmp_path}/share/{repo}",
                          options={"kill": moment, "files": True}).rc  # fmt: skip
        assert killed in (KILLED, 0)
        done = user.run("zoo.publish", str(small["first"]), f"repo=file://{tmp_path}/share/{repo}")
        assert done.rc == 0, (moment, done.err)
        assert hub.tags(repo) == {"v1": hub.head(repo)} and len(list((tmp_path / "share" / repo).glob("v*/*"))) == 1
        for path in small["first"].iterdir():
            if path.name in ("model.safetensors", "config.json", "recipe.yaml"):
                assert hub.download(repo, str(hub.head(repo)), path.name).read_bytes() == path.read_bytes()
        if killed == 0:
            break
    assert moment >= 30
    (user.home / "index.json").unlink()
    assert user.run("zoo.pull", f"file://{tmp_path}/share/{repo}").rc == 0


@pytest.mark.slow
def test_a_downloader_killed_at_any_moment(user: User, server: Server, small: dict[str, Path]) -> None:
    server.put("org/pulled", **{p.name.replace(".", "__"): p.read_bytes() for p in small["first"].iterdir()})
    for moment in range(400):
        person = user.cold()
        killed = person.run("zoo.pull", "org/pulled", options={"kill": moment}).rc
        assert killed in (KILLED, 0)
        done = person.run("zoo.pull", "org/pulled")
        assert done.rc == 0, (moment, done.err)
        assert right(person, small, "org/pulled")
        if killed == 0:
            break
    assert moment >= 20
