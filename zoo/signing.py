"""Say who made a checkpoint: an OpenSSF model signature (``model.sig``) with an elliptic-curve key, offline.

Needs the extra ``sign``. A pair of keys comes from OpenSSL::

    openssl ecparam -name prime256v1 -genkey -noout -out key.pem
    openssl ec -in key.pem -pubout -out pub.pem
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from zoo.artifact import files
from zoo.errors import ArtifactError
from zoo.results import write_text

_PRIVATE = ("private", "unencrypted private", "make one with openssl ecparam -name prime256v1 -genkey -noout")
_PUBLIC = ("public", "public", "name the signer's")


def sign(folder: str | Path, key: str | Path) -> Path:
    """Sign every file of a checkpoint folder and return the path of its ``model.sig``.

    ``key`` is a PEM file with an unencrypted private key on P-256, P-384 or P-521. The folder's hashes are checked
    first; an earlier signature is replaced. Raises ArtifactError for a folder that is no whole checkpoint or holds
    files its manifest does not list, a key that is none, and where the extra ``sign`` is missing.
    """
    library = _library()
    folder = Path(os.path.realpath(folder))
    _refuse_unlisted(folder, set(files.verify(folder)))
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / files.SIGNATURE
        config = library.signing.Config().set_hashing_config(_hashing(library, folder))
        with _reading(key, *_PRIVATE):
            config.use_elliptic_key_signer(private_key=Path(key)).sign(folder, made)
        write_text(folder / files.SIGNATURE, made.read_text(encoding="utf-8"))
    return folder / files.SIGNATURE


def public(key: str | Path) -> str:
    """Return the public half of a private key as PEM; raises ArtifactError as ``sign`` does."""
    _library()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

    with _reading(key, *_PRIVATE):
        private = serialization.load_pem_private_key(Path(key).read_bytes(), None)
        if not isinstance(private, EllipticCurvePrivateKey):
            raise TypeError(f"a {type(private).__name__}")
    half = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return half.decode()


def verify(folder: str | Path, key: str | Path, signature: Path | None = None) -> None:
    """Return if ``model.sig`` was made with the private half of ``key`` over exactly the files that lie here.

    ``key`` is a PEM file with the public key; ``signature`` is another file to check in place of ``model.sig``. A
    missing, foreign or malformed signature, and a file that was changed, added or removed since, raise ArtifactError;
    so does a missing extra ``sign``. Git's own files are not looked at.
    """
    library = _library()
    folder = Path(os.path.realpath(folder))
    held = Path(os.path.realpath(signature)) if signature else folder / files.SIGNATURE
    if not os.path.lexists(held):
        raise ArtifactError(f"{folder}: holds no {files.SIGNATURE}; it was not signed, do not trust it")
    text = files.regular(held, held)
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):  # the library prints
        copy = Path(scratch) / files.SIGNATURE
        copy.write_bytes(text)
        with _reading(key, *_PUBLIC):
            config = library.verifying.Config().set_hashing_config(_hashing(library, folder))
            config = config.use_elliptic_key_verifier(public_key=Path(key))
        try:
            config.verify(folder, copy)
        except Exception as error:  # a malformed signature fails in many ways; none of them may pass
            raise ArtifactError(f"{folder}: the signature does not hold ({_line(error)}); the files were altered or "
                                "another key signed them: do not use them") from None  # fmt: skip


@contextlib.contextmanager
def _reading(key: str | Path, half: str, form: str, hint: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ArtifactError(f"{key}: cannot be read ({error.strerror or error}); name a {half} key") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{key}: is no {form} EC key in PEM ({_line(error)}); {hint}") from None


def _library() -> ModuleType:
    try:
        import model_signing.hashing
        import model_signing.signing
        import model_signing.verifying
    except ImportError as error:
        raise ArtifactError(f"signatures need the extra 'sign' ({error}): pip install 'lowbit-zoo[sign]'") from None
    library: ModuleType = model_signing
    return library


def _hashing(library: ModuleType, folder: Path) -> object:
    config = library.hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)
    return config.set_ignored_paths(paths=[folder / files.SIGNATURE], ignore_git_paths=True)


def _refuse_unlisted(folder: Path, listed: set[str]) -> None:
    known = {*listed, files.MANIFEST, files.SIGNATURE}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if name not in known and not path.is_dir():
            raise ArtifactError(f"{path}: is not in the manifest, a signature would vouch for it; move it elsewhere")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
