"""What the hub says to be too large is not fetched: not once, and not a second time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.hub.conftest import Server, User
from zoo.artifact import files

PUBLISH, PULL = "zoo.publish", "zoo.pull"


def content(small: dict[str, Path], **changed: bytes) -> dict[str, bytes | None]:
    return {p.name.replace(".", "__"): p.read_bytes() for p in small["first"].iterdir()} | changed


def fetched(server: Server, part: str) -> list[str]:
    """Return the requests for content whose path has this part."""
    return [entry["path"] for entry in server.log() if entry["method"] == "GET" and part in entry["path"]]


def biggest(user: User) -> int:
    """Return the bytes of the largest file in the user's caches."""
    return max((p.stat().st_size for p in user.home.rglob("*") if p.is_file() and "data" not in p.parts), default=0)


@pytest.mark.parametrize("grown", [1, 1 << 20])
def test_weights_larger_than_the_manifest_says_are_not_fetched(
    grown: int, user: User, server: Server, small: dict[str, Path]
) -> None:
    right = (small["first"] / "model.safetensors").read_bytes()
    server.put("org/fat", **content(small, model__safetensors=right + bytes(grown)))
    server.fault()
    line = user.run(PULL, "org/fat").line
    assert f"model.safetensors: has {len(right) + grown} bytes, expected {len(right)}" in line
    assert fetched(server, "/_store/") == [] and biggest(user) < len(right)


def test_a_text_larger_than_the_manifest_says_is_not_fetched(
    user: User, server: Server, small: dict[str, Path]
) -> None:
    server.put("org/fattext", **content(small, recipe__yaml=bytes(1 << 20)))
    server.fault()
    assert "recipe.yaml: has 1048576 bytes, expected" in user.run(PULL, "org/fattext").line
    assert fetched(server, "recipe.yaml") == [] and biggest(user) < 1 << 20


def test_a_manifest_and_a_signature_too_large_are_not_fetched(
    user: User, server: Server, small: dict[str, Path]
) -> None:
    large = b" " * (files.TEXT_LIMIT + 1)
    server.put("org/fatlist", **content(small, manifest__json=large))
    server.fault()
    said = f"has {files.TEXT_LIMIT + 1:,} bytes, at most {files.TEXT_LIMIT:,} are fetched"
    assert f"manifest.json: {said}" in user.run(PULL, "org/fatlist").line
    assert f"manifest.json: {said}" in user.run(PUBLISH, str(small["first"]), "repo=org/fatlist").line
    assert fetched(server, "/resolve/") == []
    server.put("org/fatsig", **content(small, model__sig=large))
    server.fault()
    assert f"model.sig: {said}" in user.run(PULL, "org/fatsig", f"verify={user.home / 'any.pem'}").line
    assert fetched(server, "model.sig") == [] and biggest(user) < len(large)


def test_an_index_bounds_the_manifest_too(user: User, server: Server, small: dict[str, Path]) -> None:
    assert user.run(PUBLISH, str(small["first"]), "repo=org/pinned").rc == 0
    fields = json.loads((user.home / "index.json").read_text())
    (entry,) = fields["checkpoints"].values()
    entry["files"]["manifest.json"]["size"] -= 1
    (user.home / "index.json").write_text(json.dumps(fields | {"checkpoints": {"by_index": entry}}))
    cold = user.cold()
    server.fault()
    assert "manifest.json: has" in cold.run(PULL, "by_index").line
    assert fetched(server, "manifest.json") == []


def test_another_kind_of_model_is_not_fetched_to_see_that_it_is_one(
    user: User, server: Server, small: dict[str, Path]
) -> None:
    server.put("org/other", config__json=b"{}")
    server.fault()
    assert "another kind" in user.run(PUBLISH, str(small["first"]), "repo=org/other").line
    assert fetched(server, "config.json") == []
