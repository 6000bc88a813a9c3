"""Publish, pull and load through the real client and a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import NAME, READER, SECOND, STRANGER, WRITER, Done, Server, User
from zoo.artifact import files

PUBLISH, PULL, LOAD = "zoo.publish", "zoo.pull", "tests.hub.load"


def publish(user: User, source: Path, repo: str, *options: str, **more: str) -> Done:
    return user.run(PUBLISH, str(source), f"repo={repo}", *options, **more)


def hashes(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): files.sha256(p) for p in folder.rglob("*") if p.is_file()}


def test_a_release_comes_back_verified(user: User, server: Server, small: dict[str, Path]) -> None:
    done = publish(user, small["first"], "org/whole")
    assert done.rc == 0 and "released org/whole@v1" in done.out, done.err
    repo = server.repo("org/whole")
    assert repo is not None and repo["tags"] == {"v1": repo["head"]} and repo["commits"] == 2
    sent = repo["files"][repo["head"]]
    assert sent["model.safetensors"] == files.sha256(small["first"] / "model.safetensors")
    entry = json.loads((user.home / "index.json").read_text())["checkpoints"][NAME]
    assert entry["commit"] == repo["head"] and entry["tag"] == "v1" and entry["repo"] == "org/whole"
    assert {n: f["sha256"] for n, f in entry["files"].items()} == {n: h for n, h in sent.items() if n[0] != "."}

    cold = user.cold()
    (Path(cold.home) / "index.json").unlink()
    local, far = user.run(LOAD, str(small["first"])), cold.run(LOAD, "org/whole@v1")
    assert far.rc == 0 and far.out == local.out, far.err
    server.fault()
    assert cold.run(LOAD, "org/whole@v1").out == local.out
    assert server.log() == [], "a warm cache needs no request"


def test_the_index_gives_the_commit_without_a_request(user: User, server: Server, small: dict[str, Path]) -> None:
    publish(user, small["first"], "org/indexed")
    fields = json.loads((user.home / "index.json").read_text())
    fields["checkpoints"] = {"by_index": fields["checkpoints"][NAME]}
    (user.home / "index.json").write_text(json.dumps(fields))
    cold = user.cold()
    server.fault()
    assert cold.run(PULL, "by_index").rc == 0
    asked = [entry["path"] for entry in server.log()]
    assert asked and all("/resolve/" in path or "/_store/" in path for path in asked)
    assert all(fields["checkpoints"]["by_index"]["commit"] in path for path in asked if "/resolve/" in path)
    server.fault()
    assert cold.run(PULL, "by_index", f"output={cold.home / 'out'}").rc == 0 and server.log() == []
    kept = hashes(cold.home / "out" / "by_index")
    assert kept == {n: f["sha256"] for n, f in fields["checkpoints"]["by_index"]["files"].items()}


def test_identical_content_publishes_nothing(user: User, server: Server, small: dict[str, Path]) -> None:
    for i in range(2):
        assert publish(user, small["first"], "org/same").rc == 0
        repo = server.repo("org/same")
        assert repo is not None and repo["commits"] == 2 and list(repo["tags"]) == ["v1"]
        if i == 0:
            server.fault()
    assert not [e for e in server.log() if e["method"] in ("PUT", "POST")]


def test_another_content_is_the_next_version_and_the_old_one_stays(
    user: User, server: Server, small: dict[str, Path]
) -> None:
    server.put("org/next", notes__txt=b"by hand")
    for version in ("first", "second"):
        assert publish(user, small[version], "org/next").rc == 0
    repo = server.repo("org/next")
    assert repo is not None and set(repo["tags"]) == {"v1", "v2"} and repo["tags"]["v2"] == repo["head"]
    for tag, version in (("v1", "first"), ("v2", "second")):
        held = repo["files"][repo["tags"][tag]]
        assert held["model.safetensors"] == files.sha256(small[version] / "model.safetensors")
        assert "notes.txt" in held, "what is not ours stays"
        assert user.run(LOAD, f"org/next@{tag}").out == user.run(LOAD, str(small[version])).out
    line = publish(user, small["first"], "org/next", "tag=v2").line
    assert "v2" in line and "never move" in line
    assert server.repo("org/next") == repo


def test_a_repository_of_another_kind_is_left_alone(user: User, server: Server, small: dict[str, Path]) -> None:
    server.put("org/bert", config__json=b"{}", README__md=b"a language model")
    before = server.repo("org/bert")
    assert "another kind" in publish(user, small["first"], "org/bert").line
    assert server.repo("org/bert") == before


def test_a_dry_run_sends_nothing(user: User, server: Server, small: dict[str, Path]) -> None:
    done = publish(user, small["first"], "org/dry", "dry_run=true")
    assert done.rc == 0 and "model.safetensors" in done.out and "nothing was sent" in done.out, done.err
    assert server.repo("org/dry") is None and not (user.home / "index.json").exists()
    assert {e["method"] for e in server.log()} == {"GET"}


def test_a_dry_run_needs_no_token(user: User, server: Server, small: dict[str, Path]) -> None:
    done = publish(user, small["first"], "org/dry", "dry_run=true", HF_TOKEN="")
    assert done.rc == 0 and "nothing was sent" in done.out, done.err
    assert "token was refused" in publish(user, small["first"], "org/dry", "dry_run=true", HF_TOKEN="hf_nobody").line


def test_private_repositories_are_for_members(user: User, server: Server, small: dict[str, Path]) -> None:
    assert publish(user, small["first"], "org/secret", "private=true").rc == 0
    (user.home / "index.json").unlink()
    assert user.cold().run(LOAD, "org/secret@v1", HF_TOKEN=READER).rc == 0
    for token in (STRANGER, ""):
        assert "no such repository" in user.cold().run(PULL, "org/secret@v1", HF_TOKEN=token).line


def test_credentials_never_reach_the_storage(user: User, server: Server, small: dict[str, Path]) -> None:
    publish(user, small["first"], "org/auth")
    user.cold().run(PULL, "org/auth@v1")
    storage = [e for e in server.log() if e["path"].startswith("/_store/")]
    assert {e["method"] for e in storage} == {"PUT", "GET"} and not any(e["auth"] for e in storage)
    assert {e["host"] for e in storage if e["method"] == "GET"} == {"localhost"}
    assert all(e["auth"] for e in server.log() if e["path"].startswith("/api/"))


WRONG = {
    "token": (["repo=org/wrong"], {"HF_TOKEN": "hf_nobody"}, "token was refused"),
    "no token": (["repo=org/wrong"], {"HF_TOKEN": ""}, "no token"),
    "read-only token": (["repo=org/wrong"], {"HF_TOKEN": READER}, "may not write"),
    "foreign namespace": (["repo=org/wrong"], {"HF_TOKEN": STRANGER}, "may not write"),
    "version in repo": (["repo=org/wrong@v1"], {}, "tag=v1"),
    "no repo": ([], {}, "repo"),
    "not an address": (["repo=wrong"], {}, "org/name"),
    "tag": (["repo=org/wrong", "tag=latest"], {}, "v1, v2"),
    "option": (["repo=org/wrong", "colour=red"], {}, "colour"),
    "dry_run": (["repo=org/wrong", "dry_run=maybe"], {}, "dry_run"),
    "timm": (["repo=org/wrong", "timm=true"], {}, "timm"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_requests_end_in_one_line(case: str, user: User, server: Server, small: dict[str, Path]) -> None:
    options, more, said = WRONG[case]
    assert said in user.run(PUBLISH, str(small["first"]), *options, **more).line
    assert server.repo("org/wrong") is None and not (user.home / "index.json").exists()


def test_missing_repository_version_and_file_are_told_apart(user: User, server: Server, small: dict[str, Path]) -> None:
    publish(user, small["first"], "org/there")
    server.put("org/foreign", README__md=b"no checkpoint")
    (user.home / "index.json").unlink()
    assert "no such repository" in user.run(PULL, "org/nowhere").line
    assert "no version 'v9'" in user.run(PULL, "org/there@v9").line
    assert "no file 'manifest.json'" in user.run(PULL, "org/foreign").line
    assert "no such repository" in user.run(LOAD, "org/nowhere").line
    assert "token was refused" in user.run(PULL, "org/there", HF_TOKEN="hf_nobody").line
    assert "did you mean" in user.run(PULL, "resnet8_fashion_w4a9").line


def test_altered_and_unmeasured_checkpoints_stay_here(
    user: User, server: Server, small: dict[str, Path], tmp_path: Path
) -> None:
    from zoo.artifact import checkpoint

    read = checkpoint.read(small["first"])

    def saved(name: str, recipe: str = read.recipe, **metrics: object) -> Path:
        folder = tmp_path / name
        checkpoint.save(folder, read.program, read.config, recipe=recipe, card="x",
                        metrics=read.metrics | metrics if metrics else {})  # fmt: skip
        return folder

    other = dict(read.metrics["data"]) | {"fingerprint": "0" * 64}
    cases = {
        saved("unmeasured"): "never measured",
        saved("boasting", top1=read.metrics["top1"] - 2.5): "its record says",
        saved("images", data=other): "fingerprint",
        saved("path", recipe=read.recipe + "# from /" + "home/ann/data\n", seed=0): "path of this machine",
        saved("share", recipe=read.recipe + "# from /" + "scratch/ann/data\n", seed=0): "path of this machine",
        saved("no recipe", recipe="[", seed=0): "recipe.yaml",
    }
    altered = saved("altered", seed=0)
    (altered / "config.json").write_text((altered / "config.json").read_text() + " ")
    cases[altered] = "sha256"
    for folder, said in cases.items():
        assert said in publish(user, folder, "org/bad").line
    assert server.repo("org/bad") is None


def test_a_run_publishes_what_it_made(user: User, server: Server) -> None:
    steps = "steps=[fold_batchnorm,quantize,{calibrate:{images:64}},integerize]"
    words = ["recipe=resnet8_fashion_w8a8", "images=64", "test_limit=40", steps, f"output={user.home / 'out'}"]
    assert "repo" in user.run("zoo.run", *words, "hub.publish=true").line
    assert "token was refused" in user.run(
        "zoo.run", *words, "hub.publish=true", "hub.repo=org/made", HF_TOKEN="hf_nobody"
    ).line  # fmt: skip
    assert not (user.home / "out").exists(), "refused before the run"
    done = user.run("zoo.run", *words, "hub.publish=true", "hub.repo=org/made")
    assert done.rc == 0 and "released org/made@v1" in done.out, done.err
    far = user.run(LOAD, "org/made@v1")
    here = user.run(LOAD, str(user.home / "out" / "resnet8_fashion_w8a8" / "checkpoint"))
    assert far.rc == 0 and far.out == here.out, far.err
    metrics = json.loads(next((user.home / "zoo" / "hub").glob("org--made--*/*/metrics.json")).read_text())
    assert "output=" not in metrics["command"] and "hub." not in metrics["command"]


def test_two_people_publish_one_after_the_other(user: User, server: Server, small: dict[str, Path]) -> None:
    assert publish(user, small["first"], "org/both", HF_TOKEN=WRITER).rc == 0
    assert publish(user, small["second"], "org/both", HF_TOKEN=SECOND).rc == 0
    repo = server.repo("org/both")
    assert repo is not None and set(repo["tags"]) == {"v1", "v2"}
