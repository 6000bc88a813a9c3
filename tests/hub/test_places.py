"""Two hubs, one cache: what one gave is not taken for the other's, but for what the index vouches for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.hub.conftest import NAME, Server, User
from tests.hub.test_faults import cached

PUBLISH, PULL, LOAD = "zoo.publish", "zoo.pull", "tests.hub.load"


def claim(share: Path, repo: str, commit: str, content: Path) -> str:
    """Make a share whose v1 has a commit of another hub, and return its address."""
    shutil.copytree(content, share / repo / "versions" / "000001" / "files")
    for place in ("versions/000001", "tags/v1"):
        (share / repo / place).mkdir(parents=True, exist_ok=True)
        (share / repo / place / "commit").write_text(commit)
    return f"file://{share}"


@pytest.fixture
def commit(user: User, server: Server, small: dict[str, Path], request: pytest.FixtureRequest) -> str:
    """The commit of a version that the hub has, in a repository of the test's own."""
    repo = f"org/{request.node.name.replace('_', '')[:40]}"
    assert user.run(PUBLISH, str(small["first"]), f"repo={repo}").rc == 0
    found = server.repo(repo)
    assert found is not None
    server.fault()
    return f"{repo}@{found['head']}"


def test_a_share_answers_for_no_other_hub(
    user: User, server: Server, small: dict[str, Path], commit: str, tmp_path: Path
) -> None:
    (user.home / "index.json").unlink()
    repo, _, full = commit.partition("@")
    share = claim(tmp_path / "share", repo, full, small["second"])
    ours, theirs = (user.run(LOAD, str(small[version])).out for version in ("first", "second"))
    assert ours != theirs
    for _ in range(2):
        for address in (f"{share}/{repo}@v1", f"{share}/{repo}@{full}"):
            assert user.run(LOAD, address).out == theirs
        assert user.run(LOAD, f"{repo}@v1", ZOO_HUB=share).out == theirs
        for address in (f"{repo}@{full}", f"{repo}@v1", repo):
            assert user.run(LOAD, address).out == ours, address
    assert len(cached(user, repo)) == 2


def test_what_the_index_vouches_for_serves_whatever_the_hub(
    user: User, server: Server, small: dict[str, Path], commit: str, tmp_path: Path
) -> None:
    repo, _, full = commit.partition("@")
    fields = json.loads((user.home / "index.json").read_text())
    fields["checkpoints"] = {"by_index": fields["checkpoints"][NAME]}
    (user.home / "index.json").write_text(json.dumps(fields))
    ours = user.run(LOAD, str(small["first"])).out
    share = claim(tmp_path / "share", repo, full, small["second"])
    assert user.run(PULL, f"{share}/{repo}@v1").rc == 0
    assert user.run(LOAD, "by_index").out == ours
    server.fault()
    assert user.run(LOAD, "by_index", ZOO_HUB=share).out == ours
    assert user.run(LOAD, "by_index", HF_HUB_OFFLINE="1").out == ours and server.log() == []
