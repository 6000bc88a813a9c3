"""Bytes of a weight file from a mirror folder, the package, a URL or the hub; hashed before anyone parses them."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from zoo.errors import ArtifactError, DataError, HubError, ModelError
from zoo.results import write_bytes
from zoo.weights._config import Source

if TYPE_CHECKING:
    from torch import Tensor

_LIMIT = 2**30  # bytes: no float network of this zoo comes near it
_HDF5 = b"\x89HDF\r\n\x1a\n"


class Unavailable(Exception):
    """This source has no file for us; the next one may. The message says why."""


def fetch(source: Source, *, offline: bool = False) -> bytes:
    """Return the file's bytes, whose sha256 is the source's wherever it gives one.

    Raises Unavailable where the file is not to be had, ModelError where it is here and altered.
    """
    if source.kind == "url":
        return _from_url(source, offline)
    path = _from_hub(source, offline) if source.kind == "hub" else _from_folder(source)
    data = _read(path)
    if source.kind == "hub" and source.sha256 and hashlib.sha256(data).hexdigest() != source.sha256 and not offline:
        data = _read(_from_hub(source, offline, again=True))
    _check(source, data, f"{path}")
    return data


def keep(source: Source, data: bytes) -> None:
    """Keep a download in the cache, once its content is known to be right; a full disk costs only the next download."""
    if source.kind != "url" or _cached(source).is_file():
        return
    with contextlib.suppress(ArtifactError):
        write_bytes(_cached(source), data)


def forget(source: Source) -> bool:
    """Drop a cached download that only its content can verify; False where there is none, or its own sha256 did."""
    if source.kind == "hub" and not source.sha256:
        with contextlib.suppress(Unavailable, OSError):
            # the client's name for it is a link to the content
            _from_hub(source, offline=True).resolve().unlink()
            return True
    if source.kind != "url" or source.sha256 or not _cached(source).is_file():
        return False
    _cached(source).unlink(missing_ok=True)
    return True


def parse(data: bytes, where: str) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` or Keras ``.h5`` file; ModelError when it is cut short or neither."""
    if data.startswith(_HDF5):
        from zoo.weights.keras import read_h5

        return read_h5(data, where)
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:
        raise ModelError(f"{where}: not a readable safetensors file ({error}); fetch it again") from None


def _from_folder(source: Source) -> Path:
    from zoo.data._sources import mirror
    from zoo.paths import results_dir

    if source.kind == "package":
        path: Path | None = results_dir() / source.path
        name = f"package file {source.path} (python -m zoo.run recipe={Path(source.path).stem} makes it)"
    else:
        path = mirror(source.path)
        name = f"{os.environ.get('ZOO_MIRROR') or '../shared'}/{source.path}"
    if path is None or not path.is_file():
        raise Unavailable(f"{name} is absent")
    return path


def _from_url(source: Source, offline: bool) -> bytes:
    cached = _cached(source)
    if cached.is_file():
        data = _read(cached)
        if not source.sha256 or hashlib.sha256(data).hexdigest() == source.sha256:
            return data
        cached.unlink(missing_ok=True)  # damaged on this disk: ours to fetch again
    if offline:
        raise Unavailable(f"{source.url} is not in the cache")
    if source.url.endswith((".h5", ".hdf5")) and importlib.util.find_spec("h5py") is None:
        raise Unavailable(f"{source.url} needs the extra 'keras': pip install 'lowbit-zoo[keras]'")
    if source.sha256:
        from zoo.download import Altered
        from zoo.download import fetch as download

        try:
            return _read(download(source.url, source.sha256, cached))
        except Altered as error:
            raise ModelError(str(error)) from None
        except DataError as error:
            raise Unavailable(str(error)) from None
    # Only its content is known, so it is kept after that has been checked: see keep().
    try:
        with urllib.request.urlopen(source.url, timeout=30) as response:
            data = bytes(response.read(_LIMIT + 1))
    except (urllib.error.URLError, TimeoutError, OSError, http.client.HTTPException) as error:
        raise Unavailable(f"{source.url}: no download ({getattr(error, 'reason', error)})") from None
    if len(data) > _LIMIT:
        raise ModelError(f"{source.url}: more than {_LIMIT >> 20} MiB; this is no weight file of this zoo")
    return data


def _from_hub(source: Source, offline: bool, again: bool = False) -> Path:
    from zoo.hub.client import Remote

    try:
        return Remote().download(source.repo_id, source.revision, source.path, again=again, local=offline)
    except HubError as error:
        raise Unavailable(f"hub {error}") from None


def _cached(source: Source) -> Path:
    from zoo.data._cache import cache_dir

    key = hashlib.sha256(source.url.encode()).hexdigest()[:12]  # two publishers may use one file name
    return cache_dir() / "weights" / f"{key}-{urlsplit(source.url).path.rsplit('/', 1)[-1][-100:]}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror or error}); mend its permissions") from None


def _check(source: Source, data: bytes, where: str) -> None:
    digest = hashlib.sha256(data).hexdigest()
    if source.sha256 and digest != source.sha256:
        advice = "fetch it again"
        if source.kind == "package":
            advice = "restore it, or, where you trained it yourself, give model.weights its hashes (docs/reproduce.md)"
        raise ModelError(
            f"{where}: sha256 is {digest[:12]}, expected {source.sha256[:12]}; the file was altered or cut short: "
            f"{advice}"
        )
