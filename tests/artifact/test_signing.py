from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import zoo
from zoo import signing
from zoo.artifact import files
from zoo.errors import ArtifactError

pytest.importorskip("model_signing", reason="the extra 'sign' is not installed")


def pair(where: Path, curve: str = "prime256v1") -> tuple[Path, Path]:
    """Make a pair with OpenSSL, as the documentation says."""
    private, public = where / f"{curve}.pem", where / f"{curve}.pub.pem"
    make = ["openssl", "ecparam", "-name", curve, "-genkey", "-noout", "-out", str(private)]
    subprocess.run(make, check=True, capture_output=True)
    half = ["openssl", "ec", "-in", str(private), "-pubout", "-out", str(public)]
    subprocess.run(half, check=True, capture_output=True)
    return private, public


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return pair(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def signed(folder: Path, keys: tuple[Path, Path]) -> Path:
    signing.sign(folder, keys[0])
    return folder


def test_a_signed_checkpoint_verifies_and_still_loads(signed: Path, keys: tuple[Path, Path]) -> None:
    signing.verify(signed, keys[1])
    bundle = json.loads((signed / "model.sig").read_text())
    assert bundle["mediaType"].startswith("application/vnd.dev.sigstore.bundle")
    assert zoo.load(signed, integer=True).labels == ()
    signing.sign(signed, keys[0])  # again: the old signature is no part of what is signed
    signing.verify(signed, keys[1])


def test_every_changed_file_is_caught(signed: Path, keys: tuple[Path, Path]) -> None:
    changed = 0
    for path in sorted(signed.iterdir()):
        content = path.read_bytes()
        for place in (0, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            with pytest.raises(ArtifactError, match=r"signature|cannot be read") as error:
                signing.verify(signed, keys[1])
            assert "\n" not in str(error.value)
            changed += 1
        path.write_bytes(content)
    assert changed == 3 * len(files.NAMES)
    signing.verify(signed, keys[1])


def test_a_manifest_made_anew_does_not_help_the_attacker(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "config.json").write_text((signed / "config.json").read_text().replace('"relu"', '"relu6"'))
    manifest = json.loads((signed / files.MANIFEST).read_text())
    manifest["files"]["config.json"]["sha256"] = files.sha256(signed / "config.json")
    (signed / files.MANIFEST).write_text(json.dumps(manifest))
    zoo.load(signed)  # the manifest alone cannot know
    with pytest.raises(ArtifactError, match=r"does not hold.*config\.json"):
        signing.verify(signed, keys[1])


def test_added_and_removed_files_are_caught(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "more.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"does not hold.*more\.txt"):
        signing.verify(signed, keys[1])
    (signed / "more.txt").unlink()
    (signed / "README.md").unlink()
    with pytest.raises(ArtifactError, match=r"does not hold.*README\.md"):
        signing.verify(signed, keys[1])


def test_another_key_and_no_signature_are_refused(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not hold"):
        signing.verify(signed, pair(tmp_path)[1])
    bundle = json.loads((signed / "model.sig").read_text())
    bundle["verificationMaterial"]["publicKey"].pop("hint")  # then only the mathematics decides
    (signed / "model.sig").write_text(json.dumps(bundle))
    signing.verify(signed, keys[1])
    with pytest.raises(ArtifactError, match="does not hold"):
        signing.verify(signed, pair(tmp_path)[1])
    bundle["dsseEnvelope"]["signatures"] = []
    (signed / "model.sig").write_text(json.dumps(bundle))
    with pytest.raises(ArtifactError, match="does not hold"):
        signing.verify(signed, keys[1])
    (signed / "model.sig").unlink()
    with pytest.raises(ArtifactError, match="not signed"):
        signing.verify(signed, keys[1])


def test_keys_that_are_none_are_refused(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "text.pem").write_text("hello")
    for key in (tmp_path / "absent.pem", tmp_path / "text.pem", keys[1], pair(tmp_path, "secp256k1")[0]):
        with pytest.raises(ArtifactError, match="pem"):
            signing.sign(folder, key)
    assert not (folder / "model.sig").exists()
    signing.sign(folder, keys[0])
    for key in (tmp_path / "absent.pem", tmp_path / "text.pem", keys[0]):
        with pytest.raises(ArtifactError, match="pem"):
            signing.verify(folder, key)


def test_only_a_whole_checkpoint_is_signed(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / "notes.txt").write_text("x")
    with pytest.raises(ArtifactError, match=r"notes\.txt.*not in the manifest"):
        signing.sign(folder, keys[0])
    (folder / "notes.txt").unlink()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="sha256"):
        signing.sign(folder, keys[0])
    assert not (folder / "model.sig").exists()


def test_saving_again_takes_the_stale_signature_away(signed: Path) -> None:
    zoo.load(signed).save(signed)
    assert not (signed / "model.sig").exists()


def test_without_the_library_the_extra_is_named(signed: Path, keys: tuple[Path, Path]) -> None:
    program = (
        "import sys; sys.modules['model_signing'] = None\n"
        "from zoo import signing; from zoo.errors import ArtifactError\n"
        f"try: signing.verify({str(signed)!r}, {str(keys[1])!r})\n"
        "except ArtifactError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "lowbit-zoo[sign]" in done.stdout
