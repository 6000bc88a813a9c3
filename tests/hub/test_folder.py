"""A folder as hub: the same layout and checks, without a server."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.hub.conftest import NAME, Server, User
from zoo.artifact import files
from zoo.errors import HubError
from zoo.hub import fetch
from zoo.hub.fetch import keep
from zoo.hub.folder import Folder
from zoo.hub.index import File
from zoo.hub.names import is_address, parse

PUBLISH, PULL, LOAD = "zoo.publish", "zoo.pull", "tests.hub.load"


def test_publish_pull_and_load(user: User, server: Server, small: dict[str, Path], tmp_path: Path) -> None:
    share = f"file://{tmp_path}/share"
    released: set[str] = set()
    for version in ("first", "second", "second"):
        done = user.run(PUBLISH, str(small[version]), f"repo={share}/org/net")
        assert done.rc == 0, done.err
        assert ("released org/net@v" in done.out) == (version not in released)
        released.add(version)
    hub = Folder(tmp_path / "share")
    tags = hub.tags("org/net")
    assert set(tags) == {"v1", "v2"} and hub.head("org/net") == tags["v2"]
    (user.home / "index.json").unlink()
    for tag, version in (("v1", "first"), ("v2", "second")):
        wanted = user.run(LOAD, str(small[version])).out
        assert user.run(LOAD, f"{share}/org/net@{tag}").out == wanted
        assert user.run(LOAD, f"org/net@{tag}", ZOO_HUB=share).out == wanted
    assert "never move" in user.run(PUBLISH, str(small["first"]), f"repo={share}/org/net", "tag=v2").line
    assert "it has v1, v2" in user.run(PULL, f"{share}/org/net@v3").line
    assert "no such repository" in user.run(PULL, f"{share}/org/other").line
    assert server.log() == []


def test_a_file_altered_on_the_share_is_refused(user: User, small: dict[str, Path], tmp_path: Path) -> None:
    share = f"file://{tmp_path}/share"
    assert user.run(PUBLISH, str(small["first"]), f"repo={share}/org/net").rc == 0
    (path,) = (tmp_path / "share").rglob("model.safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    (user.home / "index.json").unlink()
    assert "sha256" in user.run(PULL, f"{share}/org/net@v1").line


def test_a_share_serves_what_the_index_knows_from_the_hub(
    user: User, server: Server, small: dict[str, Path], tmp_path: Path
) -> None:
    assert user.run(PUBLISH, str(small["first"]), "repo=org/mirrored").rc == 0
    fields = json.loads((user.home / "index.json").read_text())
    fields["checkpoints"] = {"by_index": fields["checkpoints"][NAME]}
    share = f"file://{tmp_path}/share"
    assert user.run(PUBLISH, str(small["first"]), f"repo={share}/org/mirrored").rc == 0
    (user.home / "index.json").write_text(json.dumps(fields))
    server.fault()
    done = user.cold().run(PULL, "by_index", ZOO_HUB=share)
    assert done.rc == 0 and server.log() == [], done.err
    fields["checkpoints"]["by_index"]["files"]["manifest.json"]["sha256"] = "0" * 64
    (user.home / "index.json").write_text(json.dumps(fields))
    assert "sha256" in user.cold().run(PULL, "by_index", ZOO_HUB=share).line


def test_of_two_commits_on_one_parent_one_wins(tmp_path: Path) -> None:
    hub, source = Folder(tmp_path / "share"), tmp_path / "file"
    source.write_text("1")
    hub.create("org/net", private=False)
    first = hub.commit("org/net", {"a": source, "b/c": source}, [], "", "one")
    second = hub.commit("org/net", {"d": source}, ["a"], first, "two")
    with pytest.raises(HubError, match="meanwhile"):
        hub.commit("org/net", {"e": source}, [], first, "three")
    hub.tag("org/net", "v1", second)
    with pytest.raises(HubError, match="exists already"):
        hub.tag("org/net", "v1", first)
    assert hub.resolve("org/net", "main") == hub.resolve("org/net", "v1") == second
    held = hub.download("org/net", second, "d").parent
    assert sorted(p.relative_to(held).as_posix() for p in held.rglob("*") if p.is_file()) == ["b/c", "d"]
    assert hub.download("org/net", first, "a").read_text() == "1"
    assert not list((tmp_path / "share").rglob(".new.*"))


def test_a_link_planted_on_a_share_takes_no_file_of_the_publishers(tmp_path: Path) -> None:
    hub, source, secret = Folder(tmp_path / "share"), tmp_path / "file", tmp_path / "secret"
    source.write_text("1")
    secret.write_text("mine")
    hub.create("org/net", private=False)
    first = hub.commit("org/net", {"a": source}, [], "", "one")
    (hub.download("org/net", first, "a").parent / "notes").symlink_to(secret)
    with pytest.raises(HubError, match="notes: is no plain file; remove it from the share"):
        hub.commit("org/net", {"b": source}, [], first, "two")
    assert not [
        p for p in (tmp_path / "share").rglob("*") if p.is_file() and not p.is_symlink() and "mine" in p.read_text()
    ]


def test_a_wrong_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_HUB", "/share")
    with pytest.raises(HubError, match="ZOO_HUB: '/share' is no folder; write file:///FOLDER"):
        is_address("org/n")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("told", [True, False])
def test_a_file_of_another_size_is_not_read(
    tmp_path: Path, size: int, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, source = Folder(tmp_path / "share"), tmp_path / "file"
    source.write_text("abc")
    hub.create("org/net", private=False)
    commit = hub.commit("org/net", {"a": source}, [], "", "one")
    fetched: list[str] = []
    download = hub.download

    def counted(repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None) -> Path:
        fetched.append(name)
        return download(repo, commit, name)

    assert hub.size("org/net", commit, "a") == 3
    monkeypatch.setattr(hub, "size", lambda *_, **more: 3 if told else None)
    monkeypatch.setattr(hub, "download", counted)
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("it was hashed"))
    with pytest.raises(HubError, match=f"a: has 3 bytes, expected {size}, twice"):
        fetch.fetch_file(hub, "org/net", commit, "a", File("0" * 64, size))
    assert fetched == ([] if told else ["a", "a"]), "a hub that tells no size is asked for the file itself"


def test_a_share_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "share").write_text("a file")
    with pytest.raises(HubError, match="cannot be used"):
        Folder(tmp_path / "share").create("org/net", private=False)


@pytest.mark.parametrize(
    "text",
    ["name", "a/b/c", "/abs/olute", "../x", "org/../x", "org/na--me", "org/n@", "org/n@../x", "org/-x", "org/x.git",
     "file://host/share/org/n", "file:///n", "https://example.org/org/n", "org/n\n", "o" * 60 + "/" + "n" * 60, "",
     "file:///a#b/org/n", "file:///a?b/org/n", "file://[/org/n", "file:///a%00b/org/n",
     "file:///a\nb/org/n"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    assert not is_address(text)
    with pytest.raises(HubError):
        parse(text)


def test_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_HUB", raising=False)
    assert parse("org/a.b-c_d").revision == "main" and parse("org/n@dev/x").revision == "dev/x"
    assert parse("file:///a%20b/c/org/n@v2").root == Path("/a b/c")
    assert parse("file:///a%23b/org/n").root == Path("/a#b")
    monkeypatch.setenv("ZOO_HUB", "file:///share")
    assert parse("org/n").root == Path("/share")


def test_the_clients_own_cache_can_be_loaded(small: dict[str, Path], tmp_path: Path) -> None:
    """``snapshots/COMMIT/NAME`` are links to ``blobs/HASH`` beside; links elsewhere stay refused."""
    repo = tmp_path / "models--org--net"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for path in small["first"].iterdir():
        (repo / "blobs" / files.sha256(path)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(Path("../../blobs") / files.sha256(path))
    assert "config.json" in files.verify(snapshot)
    (tmp_path / "elsewhere").write_bytes((snapshot / "config.json").read_bytes())
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Exception, match="leaves the folder"):
        files.verify(snapshot)


def test_two_checkpoints_that_would_be_one_folder_are_refused_before_any_download(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from zoo.pull import main

    assert main(["a/net@v1", "b/net@refs/pr/1", f"output={tmp_path / 'out'}"]) == 2
    assert "would be one folder below" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_another_process_placed_meanwhile_is_left_as_it_is(
    user: User, small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    share = f"file://{tmp_path}/share"
    assert user.run(PUBLISH, str(small["first"]), f"repo={share}/org/net").rc == 0
    monkeypatch.setenv("ZOO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOO_INDEX", str(tmp_path / "no index"))
    every, placed = fetch._all, []

    def slow(hub: Folder, repo: str, commit: str, manifest: dict[str, File]) -> dict[str, Path]:
        if not placed:
            placed.append(commit)
            fetch.pull(f"{share}/org/net@v1")
            placed.append(folder(commit).stat().st_ino)
        return every(hub, repo, commit, manifest)

    def folder(commit: str) -> Path:
        (found,) = (tmp_path / "cache" / "hub").glob(f"*/{commit}")
        return found

    monkeypatch.setattr(fetch, "_all", slow)
    pulled = fetch.pull(f"{share}/org/net@v1")
    assert placed == [pulled.commit, pulled.folder.stat().st_ino] and pulled.folder == folder(pulled.commit)


def test_what_changes_between_the_check_and_the_copy_is_not_vouched_for(
    small: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "checked"
    shutil.copytree(small["first"], source)
    hashes = files.verify(source)
    (source / "README.md").write_text("altered")
    with pytest.raises(HubError, match=r"README\.md: was changed while it was copied"):
        keep(source, tmp_path / "kept", hashes)
    assert not (tmp_path / "kept").exists()
