"""Fetch a published checkpoint into a verified folder of our own cache. Needs no torch.

The client checks sizes only, against those that the hub says: a byte that changed on the way is kept under the right
name, and a file of any size is fetched. So the hub is asked for each size first, every file is hashed here before
anyone parses it, and what is kept are plain files, no links into the client's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zoo import signing
from zoo.artifact import files
from zoo.data._cache import cache_dir
from zoo.errors import ArtifactError, HubError
from zoo.hub import index
from zoo.hub.client import Hub, Remote
from zoo.hub.folder import Folder
from zoo.hub.index import Entry, File
from zoo.hub.names import TAG, Address, is_commit, parse
from zoo.hub.refusals import Altered, Missing, TooLarge, Unreachable
from zoo.progress import bar
from zoo.results import write_text

LIMIT = 2**30  # bytes: no checkpoint of this zoo comes near it
_HINT = "set ZOO_CACHE to another place"


@dataclass(frozen=True)
class Pulled:
    """A verified folder, and the commit and address that it came from."""

    folder: Path
    repo: str
    commit: str
    hashes: dict[str, str]


def open_hub(address: Address) -> Hub:
    """Return the hub of an address."""
    return Remote() if address.root is None else Folder(address.root)


def pull(name: str, key: str = "") -> Pulled:
    """Return a published checkpoint by its name in the index, or by ``org/name[@version]`` or ``file://`` address.

    A name of the index is fetched at the commit and with the hashes that the index has. Any other address is resolved
    once to a full commit, and its files are checked against its own manifest. What is in the cache is hashed again; if
    it is right, no request is sent (a branch without a version is asked for its newest commit when online). What one
    hub gave for an address never stands for another hub's. A file that arrives altered is fetched once more. With
    ``key``, a PEM file with a public key, the checkpoint's signature is fetched too and has to hold.

    Raises HubError when the hub cannot be reached, refuses or lacks it, when a file arrives altered twice and when the
    disk is full; what was cached before stays. Raises ArtifactError for a checkpoint that this key did not sign.
    """
    entry = index.read().get(name)
    address = parse(f"{entry.repo}@{entry.commit}" if entry else name)
    place = _place(address, entry)
    commit, hub = _commit(address, place, entry)
    folder = place / commit
    known = _verified(folder, entry)
    if known is None:
        _download(hub or open_hub(address), address.repo, commit, folder, entry)
        known = _verified(folder, entry)
    if known is None:
        raise HubError(f"{folder}: what was just written reads back differently; {_HINT}")
    if key:
        _check_signature(hub or open_hub(address), address.repo, commit, folder, key)
    return Pulled(folder, address.repo, commit, known)


def _place(address: Address, entry: Entry | None) -> Path:
    name = address.repo.replace("/", "--")
    if entry is None:
        # nothing but a hub's word says which content a commit is: what one hub gave must not stand for another's;
        # no repository has -- in its name
        name += "--" + hashlib.sha256(open_hub(address).label.encode()).hexdigest()[:12]
    return cache_dir() / "hub" / name


def _commit(address: Address, place: Path, entry: Entry | None) -> tuple[str, Hub | None]:
    """Return the full commit, and the hub if it had to be asked."""
    revision = address.revision
    if is_commit(revision) and (entry is None or address.root is None or (place / revision).is_dir()):
        return revision, None
    hub = open_hub(address)
    if is_commit(revision) and entry is not None:
        # A share that mirrors the hub has commits of its own; the index's hashes say whether the content is the same.
        return hub.resolve(address.repo, entry.tag), hub
    note = place / "refs" / hashlib.sha256(revision.encode()).hexdigest()[:24]
    noted = note.read_text(encoding="utf-8", errors="replace").strip() if note.is_file() else ""
    if is_commit(noted) and TAG.match(revision) and (place / noted).is_dir():
        return noted, hub  # tags of this kind never move
    try:
        commit = hub.resolve(address.repo, revision)
    except Unreachable:
        if is_commit(noted) and (place / noted).is_dir():
            return noted, hub
        raise
    if not is_commit(commit):
        raise HubError(f"{address.repo}: {hub.label} gives {commit[:60]!r} as commit; it is no hub of this kind")
    with contextlib.suppress(ArtifactError):
        write_text(note, commit + "\n")
    return commit, hub


def _verified(folder: Path, entry: Entry | None) -> dict[str, str] | None:
    """Return the hashes of a cached folder; None if it is not there, damaged, or not what the index says."""
    if not folder.is_dir():
        return None
    try:
        found = files.verify(folder)
    except ArtifactError:
        return None
    wanted = {name: file.sha256 for name, file in entry.files.items() if name in found} if entry else found
    return found if found == wanted else None


def _download(hub: Hub, repo: str, commit: str, folder: Path, entry: Entry | None) -> None:
    where = f"{repo}@{commit[:12]}"
    manifest = _manifest(hub, repo, commit, entry, where)
    try:
        paths = _all(hub, repo, commit, manifest)
    except (Altered, Missing):
        # without an index nothing but its own files vouches for a manifest: it may be what was altered on the way
        again = manifest if entry else manifest_files(fetch_text(hub, repo, commit, files.MANIFEST, again=True), where)
        if again == manifest:
            raise
        paths, manifest = _all(hub, repo, commit, again), again

    try:
        if _verified(folder, entry) is not None:
            return  # another process was faster, and may be reading it
        if folder.is_dir():
            shutil.rmtree(folder)  # damaged: ours to fetch again
    except OSError as error:
        raise HubError(f"{folder}: is damaged and cannot be removed ({error.strerror}); {_HINT}") from None
    _copy({name: (path, manifest[name].sha256) for name, path in paths.items()}, folder, _HINT)


def keep(folder: Path, place: Path, hashes: Mapping[str, str]) -> Path:
    """Copy a verified checkpoint to a place of the user's own, whole or not at all, and return that place."""
    parts = {name: (folder / name, sha256) for name, sha256 in hashes.items()}
    _copy(parts, place, "choose another place with output=DIR")
    if (folder / files.SIGNATURE).is_file():
        write_text(place / files.SIGNATURE, (folder / files.SIGNATURE).read_text(encoding="utf-8"))
    return place


def _check_signature(hub: Hub, repo: str, commit: str, folder: Path, key: str) -> None:
    held = folder / files.SIGNATURE
    if os.path.lexists(held):
        with contextlib.suppress(ArtifactError):
            return signing.verify(folder, key)
    # one that does not hold may have been altered on the way
    for again in (False, True):
        try:
            fetched = fetch_text(hub, repo, commit, files.SIGNATURE, again=again)
        except Missing:
            raise ArtifactError(f"{repo}@{commit[:12]}: was not signed; leave verify= out, or ask its publisher"
                                ) from None  # fmt: skip
        try:
            signing.verify(folder, key, fetched)
        except ArtifactError:
            if again:
                raise
        else:
            write_text(held, fetched.read_text(encoding="utf-8"))
            return None
    return None


def _copy(parts: Mapping[str, tuple[Path, str]], folder: Path, hint: str) -> None:
    def fill(temporary: Path) -> None:
        for name, (path, sha256) in parts.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, temporary / name)
            # the new manifest would vouch for what was changed since it was checked
            if files.sha256(temporary / name) != sha256:
                raise ArtifactError(f"{path}: was changed while it was copied; try again")

    try:
        files.write_folder(folder, fill, hint)
    except ArtifactError as error:
        raise HubError(str(error)) from None


def _all(hub: Hub, repo: str, commit: str, manifest: Mapping[str, File]) -> dict[str, Path]:
    listed = bar(sorted(manifest.items()), f"pull {repo}@{commit[:12]}")
    return {name: fetch_file(hub, repo, commit, name, file) for name, file in listed}


def _manifest(hub: Hub, repo: str, commit: str, entry: Entry | None, where: str) -> dict[str, File]:
    """Return the files that make the checkpoint; everything the manifest says is checked before it is used."""
    if entry is not None and files.MANIFEST in entry.files:
        path = fetch_file(hub, repo, commit, files.MANIFEST, entry.files[files.MANIFEST])
        return manifest_files(path, where)
    path = fetch_text(hub, repo, commit, files.MANIFEST)
    try:
        return manifest_files(path, where)
    except HubError:
        return manifest_files(fetch_text(hub, repo, commit, files.MANIFEST, again=True), where)


def manifest_files(path: Path, where: str, name: str = files.MANIFEST) -> dict[str, File]:
    """Return name -> file of a manifest; HubError for anything that no manifest of ours says.

    ``name`` is the manifest's own in its repository, from which ``path`` was fetched.
    """
    label = f"{where}: {name}"
    try:
        # the client's links lead from below snapshots/COMMIT to the blobs beside that folder
        value = files.parse(path, label, path.parents[name.count("/")])
    except ArtifactError as error:
        raise HubError(str(error)) from None
    listed = value.get("files") if isinstance(value, dict) and value.get("format_version") == 1 else None
    if not isinstance(listed, dict) or not 0 < len(listed) <= 64:
        raise HubError(f"{label}: is of an unknown format version; upgrade the package")
    found = {name: _file(name, fields, label) for name, fields in listed.items()}
    if sum(file.size for file in found.values()) > LIMIT:
        raise HubError(f"{label}: lists files of more than {LIMIT >> 20} MiB in all; do not use this checkpoint")
    return found


def _file(name: str, fields: Any, label: str) -> File:
    parts = PurePosixPath(name).parts
    plain = name.isascii() and name.isprintable() and "\\" not in name and ":" not in name and len(name) <= 200
    if not plain or not parts or ".." in parts or name.startswith("/") or str(PurePosixPath(name)) != name:
        raise HubError(f"{label}: entry {name[:60]!r} is not a file of this folder; do not use this checkpoint")
    fields = fields if isinstance(fields, Mapping) else {}
    digest, size = fields.get("sha256"), fields.get("size")
    if not isinstance(digest, str) or len(digest) != 64 or type(size) is not int or not 0 <= size <= LIMIT:
        raise HubError(f"{label}: entry {name!r} needs a sha256 and a size of at most {LIMIT >> 20} MiB")
    return File(digest, size)


def fetch_text(hub: Hub, repo: str, commit: str, name: str, *, again: bool = False) -> Path:
    """Return a JSON file of which no hash is known, unverified; TooLarge, before it is fetched, for more bytes."""
    size = hub.size(repo, commit, name, again=again)
    if size is not None and size > files.TEXT_LIMIT and not again:
        again = True  # what is too large may be a damaged file of the client's cache
        size = hub.size(repo, commit, name, again=True)
    if size is not None and size > files.TEXT_LIMIT:
        raise TooLarge(f"{repo}@{commit[:12]}: {name}: has {size:,} bytes, at most {files.TEXT_LIMIT:,} are fetched; "
                       "do not use this checkpoint")  # fmt: skip
    return hub.download(repo, commit, name, again=again)


def fetch_file(hub: Hub, repo: str, commit: str, name: str, file: File, cache: Path | None = None) -> Path:
    """Return a file of the client's cache whose sha256 is right; a wrong one is dropped and fetched once more.

    Raises Altered for one that is wrong twice; what the hub says to be of another size is not fetched.
    """
    different = ""
    for again in (False, True):
        size = hub.size(repo, commit, name, again=again, cache=cache)
        if size is not None and size != file.size:
            different = f"has {size} bytes, expected {file.size}"
            continue
        path = hub.download(repo, commit, name, again=again, cache=cache)
        different = _difference(path, file)
        if not different:
            return path
    raise Altered(f"{repo}@{commit[:12]}: {name}: {different}, twice; the file was altered: tell its publisher")


def _difference(path: Path, file: File) -> str:
    """Return what is not as expected, empty for the file itself; one of another size is not read."""
    try:
        if (there := path.stat().st_size) != file.size:
            return f"has {there} bytes, expected {file.size}"
        found = files.sha256(path)
    except OSError as error:
        raise HubError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from None
    return "" if found == file.sha256 else f"sha256 is {found[:12]}, expected {file.sha256[:12]}"


def check_published(hub: Hub, repo: str, commit: str, wanted: Mapping[str, File]) -> None:
    """Download every file at a commit into an empty cache and compare; HubError names the first that differs."""
    with tempfile.TemporaryDirectory(prefix="zoo-verify-") as scratch:
        for name, file in bar(sorted(wanted.items()), f"verify {repo}@{commit[:12]}"):
            fetch_file(hub, repo, commit, name, file, Path(scratch))
