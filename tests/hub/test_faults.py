"""What can go wrong between here and the hub: each ends in a correct state and one line."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hub.conftest import NAME, SECOND, Done, Server, User
from zoo.artifact import files

PUBLISH, PULL, LOAD = "zoo.publish", "zoo.pull", "tests.hub.load"


@pytest.fixture(scope="module")
def held(server: Server, small: dict[str, Path]) -> str:
    """A repository that was put there behind the client's back: pulling needs no publishing."""
    server.put("org/held", **{p.name.replace(".", "__"): p.read_bytes() for p in small["first"].iterdir()})
    return "org/held"


def cached(user: User, repo: str) -> list[Path]:
    """Return what the user's cache holds of this repository, of whichever hub."""
    name, place = repo.replace("/", "--"), user.home / "zoo" / "hub"
    return [p for pattern in (f"{name}/*", f"{name}--*/*") for p in place.glob(pattern) if p.name != "refs"]


def right(user: User, small: dict[str, Path], repo: str) -> bool:
    """Tell whether exactly the right files lie in the user's cache; an empty folder that a kill left is no file."""
    folders = [p for p in cached(user, repo) if any(p.iterdir())]
    wanted = {p.name: files.sha256(p) for p in small["first"].iterdir()}
    return len(folders) == 1 and {p.name: files.sha256(p) for p in folders[0].iterdir()} == wanted


def nothing(user: User, repo: str) -> bool:
    """Tell whether the user's cache holds no checkpoint of this repository, whole or in part."""
    return cached(user, repo) == []


ONCE: dict[str, dict[str, Any]] = {
    "500": {"match": "^GET /org/held/resolve", "kind": "status", "status": 500},
    "no size told": {"match": "^HEAD /org/held/resolve", "kind": "status", "status": 500},
    "429": {"match": "^HEAD /org/held/resolve", "kind": "status", "status": 429, "times": 2},
    "503 at the storage": {"match": "^GET /_store", "kind": "status", "status": 503},
    "cut body": {"match": "^GET /_store", "kind": "cut", "bytes": 1000},
    "flipped byte in the weights": {"match": "^GET /_store", "kind": "flip", "at": 5000},
    "flipped byte in config.json": {"match": "^GET .*config.json", "kind": "flip", "at": 40},
    "flipped digit in manifest.json": {"match": "^GET .*manifest.json", "kind": "flip", "at": 120},
    "flipped brace in manifest.json": {"match": "^GET .*manifest.json", "kind": "flip", "at": 0},
}


@pytest.mark.parametrize("case", ONCE)
def test_one_fault_is_mended_by_itself(
    case: str, user: User, server: Server, small: dict[str, Path], held: str
) -> None:
    server.fault(ONCE[case])
    done = user.run(PULL, held)
    assert done.rc == 0, done.err
    assert right(user, small, held)


LASTING: dict[str, tuple[dict[str, Any], str]] = {
    "500": ({"match": "/resolve/", "kind": "status", "status": 500}, "answered 500"),
    "429": ({"match": "/api/models", "kind": "status", "status": 429}, "too many requests"),
    "401": ({"match": "/api/models", "kind": "status", "status": 401}, "token was refused"),
    "403 at the storage": ({"match": "^GET /_store", "kind": "status", "status": 403}, "403|may not"),
    "cut body": ({"match": "^GET /_store", "kind": "cut", "bytes": 1000}, "cannot be reached"),
    "flipped byte in the weights": ({"match": "^GET /_store", "kind": "flip", "at": 5000}, "sha256 is .* twice"),
    "flipped byte in config.json": ({"match": "^GET .*config", "kind": "flip", "at": 40}, "config.json: sha256"),
    "no JSON": ({"match": "^GET .*manifest", "kind": "flip", "at": 0}, "not readable as JSON"),
}  # fmt: skip


@pytest.mark.parametrize("case", LASTING)
def test_a_lasting_fault_is_one_line_and_leaves_nothing(
    case: str, user: User, server: Server, small: dict[str, Path], held: str
) -> None:
    rule, said = LASTING[case]
    server.fault(rule | {"times": 1000})
    line = user.run(PULL, held).line
    assert re.search(said, line), line
    assert nothing(user, held)
    server.fault()
    assert user.run(PULL, held).rc == 0 and right(user, small, held), "what the fault left must not stay in the way"


def test_a_file_missing_in_the_tree_is_named(user: User, server: Server, small: dict[str, Path]) -> None:
    content = {p.name.replace(".", "__"): p.read_bytes() for p in small["first"].iterdir()}
    server.put("org/hole", **(content | {"config__json": None}))
    assert "has no file 'config.json'" in user.run(PULL, "org/hole").line
    assert nothing(user, "org/hole")


def test_a_manifest_of_too_many_bytes_is_refused(user: User, server: Server) -> None:
    entries = {n: {"sha256": "0" * 64, "size": 2**30} for n in ("model.safetensors", "config.json")}
    server.put("org/huge", manifest__json=json.dumps({"format_version": 1, "files": entries}).encode())
    assert "lists files of more than 1024 MiB in all" in user.run(PULL, "org/huge").line
    assert nothing(user, "org/huge")


@pytest.mark.parametrize("name", ["../outside", "/etc/x", "a\\b", "C:x", "", ".", "a//b"])
def test_a_manifest_names_no_file_elsewhere(name: str, user: User, server: Server) -> None:
    entries = {n: {"sha256": "0" * 64, "size": 1} for n in ("model.safetensors", "config.json", name)}
    server.put("org/evil", manifest__json=json.dumps({"format_version": 1, "files": entries}).encode())
    assert "not a file of this folder" in user.run(PULL, "org/evil").line
    assert nothing(user, "org/evil") and not [e for e in server.log() if "outside" in e["path"]]


def test_a_damaged_or_half_cache_is_mended(user: User, server: Server, small: dict[str, Path], held: str) -> None:
    assert user.run(PULL, held).rc == 0
    (folder,) = cached(user, held)
    blobs = [p for p in (user.home / "hf").rglob("blobs/*") if p.is_file()]
    assert len(blobs) == 6
    for damage in ("flip", "half", "missing"):
        for path in [folder / "model.safetensors", *blobs]:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 4
            if damage == "missing":
                path.unlink()
            else:
                path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
        done = user.run(LOAD, held)
        assert done.rc == 0 and done.out == user.run(LOAD, str(small["first"])).out, (damage, done.err)
        assert right(user, small, held)


def test_offline_needs_the_cache_and_says_so(user: User, server: Server, held: str) -> None:
    assert "offline" in user.run(PULL, held, HF_HUB_OFFLINE="1").line
    assert server.log() == []
    assert user.run(PULL, held).rc == 0
    server.fault()
    assert user.run(LOAD, held, HF_HUB_OFFLINE="1").rc == 0 and server.log() == []


def test_a_server_that_is_down(user: User, small: dict[str, Path], held: str) -> None:
    assert user.run(PULL, held).rc == 0
    user.server = Server("http://127.0.0.1:9")
    assert "cannot be reached" in user.run(PULL, "org/another").line
    assert "cannot be reached" in user.run(PUBLISH, str(small["first"]), "repo=org/another").line


def test_a_slow_server_is_given_up(user: User, server: Server, held: str) -> None:
    server.fault({"match": "/resolve/", "kind": "delay", "seconds": 4, "times": 1000})
    line = user.run(PULL, held, HF_HUB_DOWNLOAD_TIMEOUT="1", HF_HUB_ETAG_TIMEOUT="1").line
    assert "did not answer in time" in line
    assert nothing(user, held)


def test_clocks_that_disagree_do_no_harm(user: User, server: Server, small: dict[str, Path], held: str) -> None:
    server.fault(date="Thu, 01 Jan 1970 00:00:00 GMT")
    assert user.run(PULL, held).rc == 0
    for path in user.home.rglob("*"):
        os.utime(path, (4e9, 4e9), follow_symlinks=False)
    assert user.run(PULL, held).rc == 0 and right(user, small, held)
    assert user.run(PUBLISH, str(small["first"]), "repo=org/clock").rc == 0


@pytest.mark.parametrize("limit", [100, 10_000, 43_000])
def test_a_full_disk_is_one_line(limit: int, user: User, server: Server, small: dict[str, Path], held: str) -> None:
    done = user.run(PULL, held, options={"file_limit": limit})
    assert "cannot be written" in done.line or "cannot be reached" not in done.line
    assert nothing(user, held)
    assert user.run(PULL, held).rc == 0 and right(user, small, held)


def released(server: Server, repo: str) -> dict[str, str]:
    found = server.repo(repo)
    return {} if found is None else found["tags"]


PUBLISHING: dict[str, tuple[dict[str, Any], str]] = {
    "preupload 500": ({"match": "preupload", "kind": "status", "status": 500}, "answered 500"),
    "storage refuses": ({"match": "^PUT", "kind": "status", "status": 403}, "may not|403"),
    "card refused": ({"match": "validate-yaml", "kind": "status", "status": 400}, "refuses"),
    "stale parent": ({"match": "/commit/", "kind": "status", "status": 412}, "meanwhile"),
    "commit done, answer lost": ({"match": "/commit/", "kind": "lost"}, "answered 500|meanwhile"),
    "tag exists": ({"match": "/tag/", "kind": "status", "status": 409}, "exists already"),
    "verification finds another byte": ({"match": "^GET /_store", "kind": "flip", "at": 9}, "sha256"),
    "verification is cut": ({"match": "^GET /_store", "kind": "cut"}, "cannot be reached"),
}


@pytest.mark.parametrize("case", PUBLISHING)
def test_a_fault_while_publishing_releases_nothing_and_the_next_try_completes_it(
    case: str, user: User, server: Server, small: dict[str, Path]
) -> None:
    rule, said = PUBLISHING[case]
    repo = f"org/fault{list(PUBLISHING).index(case)}"
    server.fault(rule | {"times": 1000})
    line = user.run(PUBLISH, str(small["first"]), f"repo={repo}").line
    assert re.search(said, line), line
    assert released(server, repo) == {} and not (user.home / "index.json").exists()
    server.fault()
    done = user.run(PUBLISH, str(small["first"]), f"repo={repo}")
    assert done.rc == 0, done.err
    found = server.repo(repo)
    assert found is not None and found["tags"] == {"v1": found["head"]} and found["commits"] == 2


def test_two_publishers_at_once_leave_one_winner(
    user: User, server: Server, small: dict[str, Path], tmp_path: Path
) -> None:
    """The first is held up before its commit until the second is through."""
    server.put("org/race", notes__txt=b"x")
    server.fault({"match": "^POST .*/commit/", "kind": "wait"})
    first: list[Done] = []
    words = ["-m", "zoo.publish", str(small["first"]), "repo=org/race"]
    held_up = threading.Thread(target=lambda: first.append(user.process(sys.executable, *words)))
    held_up.start()
    while not server.ask("/_test/waiting"):
        assert held_up.is_alive(), first
        time.sleep(0.1)
    second = user.run(PUBLISH, str(small["second"]), "repo=org/race", HF_TOKEN=SECOND)
    assert second.rc == 0, second.err
    server.ask("/_test/go", {})
    held_up.join()
    assert "meanwhile" in first[0].line
    repo = server.repo("org/race")
    assert repo is not None and repo["tags"] == {"v1": repo["head"]}
    assert repo["files"][repo["head"]]["model.safetensors"] == files.sha256(small["second"] / "model.safetensors")
    assert user.run(PUBLISH, str(small["first"]), "repo=org/race").rc == 0
    assert set(released(server, "org/race")) == {"v1", "v2"}
    assert json.loads((user.home / "index.json").read_text())["checkpoints"][NAME]["tag"] == "v2"
