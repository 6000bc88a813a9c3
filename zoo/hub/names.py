"""What a person may write for a published checkpoint: ``org/name``, ``org/name@v1``, ``file:///share/org/name@v1``."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from zoo.errors import HubError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPO = re.compile(rf"{_PART}/{_PART}\Z")
_REVISION = re.compile(r"(?!.*\.\.)[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}\Z")
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
TAG = re.compile(r"v[1-9][0-9]{0,5}\Z")


@dataclass(frozen=True)
class Address:
    """``repo`` is ``org/name``; ``root`` is the folder that serves as hub, None for the Hugging Face Hub."""

    repo: str
    revision: str = "main"
    root: Path | None = None


def is_commit(revision: str) -> bool:
    """Tell whether a revision is a full commit id, which names one content for ever."""
    return _COMMIT.match(revision) is not None


def is_address(text: str) -> bool:
    """Tell whether a text has the form of a published checkpoint's address; HubError for a wrong ``$ZOO_HUB``."""
    _hub()
    try:
        parse(text)
    except HubError:
        return False
    return True


def parse(text: str) -> Address:
    """Return the address; HubError for what is none. ``$ZOO_HUB=file:///FOLDER`` is the hub of ``org/name``."""
    place, _, revision = text.partition("@")
    if text.startswith("file://"):
        folder, _, name = place.rpartition("/")
        folder, _, org = folder.rpartition("/")
        root: Path | None = folder_of(folder, text)
        repo = f"{org}/{name}"
    else:
        repo = place
        root = _hub()
    if len(repo) > 96 or not _REPO.match(repo) or repo.endswith(".git") or "--" in repo or ".." in repo:
        raise HubError(f"{text!r}: is no checkpoint's address; write org/name, org/name@v1 or file:///FOLDER/org/name")
    if "@" in text and not _REVISION.match(revision):
        raise HubError(f"{text!r}: {revision!r} is no version; write a tag, a branch or a commit after the @")
    return Address(repo, revision or "main", root)


def _hub() -> Path | None:
    return folder_of(os.environ["ZOO_HUB"], "ZOO_HUB") if os.environ.get("ZOO_HUB") else None


def folder_of(url: str, where: str) -> Path:
    """Return the folder of a ``file://`` address; HubError, which names ``where``, for what is none."""
    if not unquote(url).isprintable():
        raise HubError(f"{where}: {url!r} has characters that no folder's name should have; rename the folder")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise HubError(f"{where}: {url!r} is no address ({error}); write file:///FOLDER") from None
    if parts.query or parts.fragment or url.endswith(("#", "?")):
        raise HubError(f"{where}: {url!r}: write %23 for # and %3F for ? in a folder's name")
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise HubError(f"{where}: {url!r} is no folder; write file:///FOLDER")
    return Path(unquote(parts.path))
