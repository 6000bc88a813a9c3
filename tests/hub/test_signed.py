"""Signatures on their way through the hub: made by ``publish sign=``, held against a key by ``pull verify=``."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from tests.artifact.test_signing import pair
from tests.hub.conftest import Done, Server, User
from zoo import signing
from zoo.artifact import files

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")

PUBLISH, PULL = "zoo.publish", "zoo.pull"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path]]:
    """Two pairs of a private and a public key."""
    return {name: pair(tmp_path_factory.mktemp(name)) for name in ("ours", "theirs")}


def publish(user: User, source: Path, repo: str, *options: str, kill: int | None = None) -> Done:
    return user.run(PUBLISH, str(source), f"repo={repo}", *options, options={} if kill is None else {"kill": kill})


def held(server: Server, repo: str) -> dict[str, str]:
    found = server.repo(repo)
    assert found is not None
    files: dict[str, str] = found["files"][found["head"]]
    return files


def test_a_signed_release_verifies_and_a_warm_cache_needs_no_request(
    user: User, server: Server, small: dict[str, Path], keys: dict[str, tuple[Path, Path]]
) -> None:
    private, public = keys["ours"]
    assert publish(user, small["first"], "org/signed", f"sign={private}").rc == 0
    assert files.SIGNATURE in held(server, "org/signed")
    cold = user.cold()
    done = cold.run(PULL, "org/signed@v1", f"verify={public}", f"output={cold.home / 'out'}")
    assert done.rc == 0 and f"signed by the key of {public}" in done.out, done.err
    server.fault()
    assert cold.run(PULL, "org/signed@v1", f"verify={public}").rc == 0
    assert server.log() == []
    signing.verify(cold.home / "out" / "signed", public)
    assert "another key" in cold.run(PULL, "org/signed@v1", f"verify={keys['theirs'][1]}").line
    assert cold.run(PULL, "org/signed@v1", f"verify={public}").rc == 0, "a wrong key spoils nothing"


def test_only_a_signature_of_another_key_makes_another_version(
    user: User, server: Server, small: dict[str, Path], keys: dict[str, tuple[Path, Path]]
) -> None:
    repo = "org/versions"
    assert publish(user, small["first"], repo).rc == 0
    for _ in range(2):  # ECDSA is randomised: the second signature has other bytes
        assert publish(user, small["first"], repo, f"sign={keys['ours'][0]}").rc == 0
    assert publish(user, small["first"], repo).rc == 0
    found = server.repo(repo)
    assert found is not None and sorted(found["tags"]) == ["v1", "v2"]
    assert publish(user, small["first"], repo, f"sign={keys['theirs'][0]}").rc == 0
    refused = publish(user, small["first"], repo, f"sign={keys['ours'][0]}", "tag=v3")
    assert "exists with another content" in refused.line
    assert user.cold().run(PULL, f"{repo}@v2", f"verify={keys['ours'][1]}").rc == 0
    assert user.cold().run(PULL, f"{repo}@v3", f"verify={keys['theirs'][1]}").rc == 0
    # a version without a signature does not keep that of the one before
    assert publish(user, small["second"], repo).rc == 0
    assert files.SIGNATURE not in held(server, repo)


def test_tampering_after_signing_is_caught_though_the_manifest_fits(
    user: User, server: Server, small: dict[str, Path], keys: dict[str, tuple[Path, Path]]
) -> None:
    private, public = keys["ours"]
    assert publish(user, small["first"], "org/tampered", f"sign={private}").rc == 0
    altered = (small["first"] / "metrics.json").read_bytes().replace(b'"top1"', b'"top1" ')
    read = user.cold()
    assert read.run(PULL, "org/tampered", f"output={read.home / 'out'}").rc == 0
    manifest = json.loads((read.home / "out" / "tampered" / files.MANIFEST).read_bytes())
    manifest["files"]["metrics.json"] = {"sha256": hashlib.sha256(altered).hexdigest(), "size": len(altered)}
    server.put("org/tampered", metrics__json=altered, manifest__json=json.dumps(manifest).encode())
    cold = user.cold()
    assert cold.run(PULL, "org/tampered").rc == 0, "without a key the manifest is all there is"
    assert "signature does not hold" in cold.run(PULL, "org/tampered", f"verify={public}").line
    assert cold.run(PULL, "org/tampered@v1", f"verify={public}").rc == 0, "the version that was signed still verifies"


def test_an_unsigned_release_and_a_spoiled_signature(
    user: User, server: Server, small: dict[str, Path], keys: dict[str, tuple[Path, Path]]
) -> None:
    private, public = keys["ours"]
    assert publish(user, small["first"], "org/plain").rc == 0
    assert "was not signed" in user.cold().run(PULL, "org/plain@v1", f"verify={public}").line
    assert publish(user, small["first"], "org/spoiled", f"sign={private}").rc == 0
    for times, right in ((1, True), (9, False)):
        server.fault({"match": "^GET .*model.sig", "kind": "flip", "at": 300, "times": times})
        done = user.cold().run(PULL, "org/spoiled@v1", f"verify={public}")
        assert (done.rc == 0) == right, done.err
        assert right or "signature" in done.line


@pytest.mark.parametrize("key", ["missing.pem", "no.pem", "public"])
def test_a_key_that_cannot_sign_is_refused_before_anything_is_sent(
    key: str, user: User, server: Server, small: dict[str, Path], keys: dict[str, tuple[Path, Path]]
) -> None:
    (user.home / "no.pem").write_text("no key")
    path = keys["ours"][1] if key == "public" else user.home / key
    assert str(path) in publish(user, small["first"], f"org/{key.partition('.')[0]}", f"sign={path}").line
    assert server.log() == []


@pytest.mark.slow
def test_a_signing_publisher_killed_late_signs_once(
    user: User, server: Server, small: dict[str, Path], keys: dict[str, tuple[Path, Path]]
) -> None:
    ended = []
    for moment in range(20, 400, 6):
        repo = f"org/late{moment}"
        ended.append(publish(user, small["first"], repo, f"sign={keys['ours'][0]}", kill=moment).rc)
        assert publish(user, small["first"], repo, f"sign={keys['ours'][0]}").rc == 0
        found = server.repo(repo)
        assert found is not None and found["tags"] == {"v1": found["head"]} and found["commits"] == 2
        assert user.cold().run(PULL, f"{repo}@v1", f"verify={keys['ours'][1]}").rc == 0
        if ended[-1] == 0:
            break
    assert len(ended) >= 3 and ended[-1] == 0
