"""The Hugging Face Hub behind a narrow interface; its many errors become one line each."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from zoo.errors import HubError, ZooError
from zoo.hub.refusals import Missing, Passing, Tokenless, Unreachable

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_STATUS = {
    401: "the token was refused; set HF_TOKEN to a valid one, or log in with: hf auth login",
    403: "this token may not write there; use one with write access to the organisation, or another repo=",
    409: "it exists already; choose another name or tag",
    412: "someone else published there meanwhile; run the command again",
    413: "the file is too large for this hub",
    429: "the hub asks for a pause (too many requests); try again in some minutes",
}


class Hub(Protocol):
    """What publishing and fetching need of a hub; every refusal is a HubError."""

    label: str

    def user(self) -> str:
        """Return who may write here."""

    def resolve(self, repo: str, revision: str) -> str:
        """Return the full commit of a tag, branch or commit."""

    def head(self, repo: str) -> str | None:
        """Return the newest commit; None where the repository does not exist."""

    def tags(self, repo: str) -> dict[str, str]:
        """Return tag -> commit."""

    def size(self, repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None) -> int | None:
        """Return the bytes of the file that ``download`` would return; None where the hub does not tell.

        Raises Missing where the hub says that there is no such file.
        """

    def download(self, repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None) -> Path:
        """Return a file of a commit, unverified; ``again`` bypasses the cache, ``cache`` replaces it."""

    def create(self, repo: str, *, private: bool) -> None:
        """Make the repository, if it does not exist."""

    def commit(self, repo: str, add: Mapping[str, Path], delete: Sequence[str], parent: str, message: str) -> str:
        """Add and delete files on top of ``parent`` in one step and return the commit; refused if there is a newer."""

    def tag(self, repo: str, tag: str, commit: str) -> None:
        """Name a commit for good; refused if the tag exists."""


class Remote:
    """The hub at ``$HF_ENDPOINT``, with the token of the environment or of the client's own store."""

    def __init__(self) -> None:
        """Use the client's own settings; no request is sent."""
        from huggingface_hub import HfApi, constants

        self.api = HfApi(library_name="lowbit-zoo")
        self.label = str(constants.ENDPOINT)

    def user(self) -> str:
        """Return the name of the token's owner."""
        with self._plain("the hub"):
            return str(self.api.whoami()["name"])

    def resolve(self, repo: str, revision: str) -> str:
        """Return the full commit of a revision, in one request."""
        with self._plain(repo, revision):
            sha = self.api.model_info(repo, revision=revision).sha
        if not sha:
            raise HubError(f"{repo}: {self.label} names no commit for {revision!r}; try again later")
        return str(sha)

    def head(self, repo: str) -> str | None:
        """Return the newest commit of ``main``."""
        from huggingface_hub.errors import RepositoryNotFoundError

        with self._plain(repo):
            try:
                return self.api.model_info(repo).sha
            except RepositoryNotFoundError:
                return None

    def tags(self, repo: str) -> dict[str, str]:
        """Return the tags with their commits."""
        with self._plain(repo):
            return {tag.name: tag.target_commit for tag in self.api.list_repo_refs(repo).tags}

    def size(self, repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None) -> int | None:
        """Return what one request for the file's head says; a file in the client's cache costs none."""
        from huggingface_hub import constants, hf_hub_url, try_to_load_from_cache

        try:
            with self._plain(repo, commit, name):
                held = None if again else try_to_load_from_cache(repo, name, cache_dir=cache, revision=commit)
                if isinstance(held, str):
                    return os.path.getsize(held)
                url = hf_hub_url(repo, name, revision=commit, endpoint=self.label)
                told = self.api.get_hf_file_metadata(url=url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Missing:
            raise
        except HubError:  # the download asks again, with the client's own patience, and says what is wrong
            return None
        return None if told.size is None else int(told.size)

    def download(
        self, repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None, local: bool = False
    ) -> Path:
        """Return the path in the client's cache; a file that is there at this commit costs no request.

        ``local`` asks for what is in the cache and sends no request at all.
        """

        def ask() -> Path:
            with self._plain(repo, commit, name):
                return Path(self.api.hf_hub_download(
                    repo, name, revision=commit, force_download=again, cache_dir=cache, local_files_only=local
                ))  # fmt: skip

        try:
            return ask()
        except Passing:  # the client retries where it asks for a file's size, not where it asks for its content
            return ask()

    def create(self, repo: str, *, private: bool) -> None:
        """Create the model repository; that it exists is fine."""
        with self._plain(repo):
            self.api.create_repo(repo, private=private, exist_ok=True)

    def commit(self, repo: str, add: Mapping[str, Path], delete: Sequence[str], parent: str, message: str) -> str:
        """Send one commit to ``main``."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [CommitOperationAdd(name, str(path)) for name, path in sorted(add.items())]
        operations += [CommitOperationDelete(name, is_folder=False) for name in sorted(delete)]
        with self._plain(repo):
            done = self.api.create_commit(repo, operations, commit_message=message, parent_commit=parent or None)
        return str(done.oid)

    def tag(self, repo: str, tag: str, commit: str) -> None:
        """Create the tag."""
        with self._plain(repo, f"tag {tag}"):
            self.api.create_tag(repo, tag=tag, revision=commit)

    @contextlib.contextmanager
    def _plain(self, repo: str, revision: str = "", name: str = "") -> Iterator[None]:
        # The client logs every retry with its address, which may carry a signature.
        logger = logging.getLogger("huggingface_hub")
        level = logger.level
        logger.setLevel(logging.ERROR)
        try:
            yield
        except ZooError:
            raise
        except Exception as error:
            refusal = explain(error, repo, revision, name, self.label)
            if refusal is None:
                raise
            raise refusal from None
        finally:
            logger.setLevel(level)


def explain(error: BaseException, repo: str, revision: str, name: str, label: str) -> HubError | None:
    """Return the one-line refusal for an error of the client, None for one that is not its.

    By the names of the classes, which differ between versions of the client. Its own texts are not passed on: they
    hold addresses with signatures.
    """
    kinds = {c.__name__ for c in type(error).__mro__}
    where = repo + (f"@{revision[:12]}" if revision else "")
    if "GatedRepoError" in kinds:
        return HubError(f"{repo}: access must be asked for on {label}; do so there, and set HF_TOKEN")
    if "RepositoryNotFoundError" in kinds:
        return HubError(f"{repo}: no such repository on {label}, or a private one; check the name, or set HF_TOKEN")
    if "RevisionNotFoundError" in kinds:
        return HubError(f"{repo}: no version {revision!r} on {label}; look there for its tags, or leave the @ out")
    if "LocalEntryNotFoundError" in kinds and error.__cause__ is not None and not _offline():
        return explain(error.__cause__, repo, revision, name, label) or _unreachable(where, label, error.__cause__)
    if "LocalEntryNotFoundError" in kinds or "OfflineModeIsEnabled" in kinds:
        if not _offline():
            return _unreachable(where, label, error)
        once = f"go online once: python -m zoo.pull {repo}"
        return Unreachable(f"{where}: offline (HF_HUB_OFFLINE) and not in the cache; {once}")
    if "EntryNotFoundError" in kinds:
        return Missing(f"{where}: has no file {name or 'of this name'!r}; it is no checkpoint of this package, choose "
                       "another")  # fmt: skip
    if "LocalTokenNotFoundError" in kinds:
        return Tokenless("no token; set HF_TOKEN, or log in with: hf auth login")
    if "HFValidationError" in kinds:
        return HubError(f"{repo!r}: is no name of a repository; write org/name")
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        text = _STATUS.get(status) or f"{label} answered {status}; try again later"
        return (Passing if status >= 500 else HubError)(f"{where}: {text}")
    if type(error).__module__.split(".")[0].startswith(("httpx", "requests", "urllib3", "httpcore")):
        return _unreachable(where, label, error)
    return _other(error, kinds, where, label, (repo, revision, name))


def _other(
    error: BaseException, kinds: set[str], where: str, label: str, asked: tuple[str, str, str]
) -> HubError | None:
    if "ValueError" in kinds:  # such as a model card that the hub's own check refuses, or an answer that is no JSON
        said = " ".join(str(error).split())[:160]
        return HubError(f"{where}: {label} refuses or answers nonsense ({said}); try again later")
    if isinstance(error, OSError) and error.errno is not None:
        doing = "free some space" if error.errno in _FULL else "mend its permissions, or set HF_HOME to another place"
        return HubError(f"{error.filename or where}: cannot be written ({os.strerror(error.errno)}); {doing}")
    if isinstance(error, (OSError, RuntimeError)) and error.__cause__ is not None:
        return explain(error.__cause__, *asked, label)
    if isinstance(error, OSError):
        return HubError(f"{where}: the transfer failed ({type(error).__name__}); try again")
    return None


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _unreachable(where: str, label: str, error: BaseException) -> HubError:
    kind = "it did not answer in time" if "Timeout" in type(error).__name__ else type(error).__name__
    return Unreachable(f"{where}: {label} cannot be reached ({kind}); go online, or set HF_ENDPOINT to a mirror")
