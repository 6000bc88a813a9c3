"""A folder or a network share as a hub.

``ROOT/org/name/versions/000001/`` holds ``commit`` and ``files/``, ``ROOT/org/name/tags/v1/`` holds ``commit``. Each
appears by renaming a finished folder to a name that must be free: of two publishers one wins, without any lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from zoo.errors import HubError
from zoo.hub.names import is_commit
from zoo.hub.refusals import Missing


class Folder:
    """The hub of ``file:///ROOT``."""

    def __init__(self, root: Path) -> None:
        """Nothing is read or written yet."""
        self.root = root
        self.label = f"file://{root}"

    def user(self) -> str:
        """Return the share: it has no accounts, and whether this process may write is seen when writing."""
        return self.label

    def resolve(self, repo: str, revision: str) -> str:
        """Return the full commit of a tag, ``main`` or a commit."""
        versions = self._versions(repo)
        if not versions:
            raise HubError(f"{repo}: no such repository in {self.label}; check the name, or whether the share is there")
        if revision == "main":
            return list(versions)[-1]
        if revision in versions:
            return revision
        tags = self.tags(repo)
        if revision not in tags:
            raise HubError(f"{repo}: no version {revision!r} in {self.label}; it has {', '.join(tags) or 'no tags'}")
        return tags[revision]

    def head(self, repo: str) -> str | None:
        """Return the newest commit."""
        versions = self._versions(repo)
        return list(versions)[-1] if versions else None

    def tags(self, repo: str) -> dict[str, str]:
        """Return the tags with their commits."""
        with self._plain(repo):
            places = sorted((self.root / repo / "tags").glob("*/commit"))
            return {path.parent.name: path.read_text(encoding="ascii").strip() for path in places}

    def size(self, repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None) -> int | None:
        """Return the size on the share."""
        with self._plain(repo):
            return self.download(repo, commit, name).stat().st_size

    def download(self, repo: str, commit: str, name: str, *, again: bool = False, cache: Path | None = None) -> Path:
        """Return the path on the share itself: nothing is cached here."""
        versions = self._versions(repo)
        if commit not in versions:
            raise HubError(f"{repo}: no commit {commit[:12]} in {self.label}; publish it there")
        path = versions[commit] / "files" / name
        if not path.is_file():
            raise Missing(f"{repo}@{commit[:12]}: has no file {name!r}; it is no checkpoint, publish it again")
        return path

    def create(self, repo: str, *, private: bool) -> None:
        """Make the folder; who may read it is up to the share."""
        with self._plain(repo):
            (self.root / repo / "versions").mkdir(parents=True, exist_ok=True)
            (self.root / repo / "tags").mkdir(exist_ok=True)

    def commit(self, repo: str, add: Mapping[str, Path], delete: Sequence[str], parent: str, message: str) -> str:
        """Write the next version: the parent's files, less ``delete``, and ``add``; HubError if it exists by now."""
        versions = self._versions(repo)
        if (list(versions)[-1] if versions else "") != parent:
            raise HubError(f"{repo}: someone else published there meanwhile; run the command again")
        digest = hashlib.sha1(f"{parent}\n{message}\n".encode())

        def fill(folder: Path) -> None:
            if parent:
                old = versions[parent] / "files"
                # whoever can write to the share could name any file of the publisher's
                link = next(
                    (p for p in sorted(old.rglob("*")) if p.is_symlink() or not (p.is_file() or p.is_dir())), None
                )
                if link is not None:
                    raise HubError(f"{link}: is no plain file; remove it from the share, a checkpoint holds none")
                shutil.copytree(old, folder / "files", symlinks=True)
            for name in delete:
                (folder / "files" / name).unlink(missing_ok=True)
            for name, path in add.items():
                (folder / "files" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / "files" / name)
            for path in sorted(p for p in folder.rglob("*") if p.is_file()):
                digest.update(f"{path.relative_to(folder).as_posix()}\0".encode() + path.read_bytes())
            (folder / "commit").write_text(digest.hexdigest(), encoding="ascii")

        number = int(versions[parent].name) + 1 if parent else 1
        if not self._place(repo, f"versions/{number:06d}", fill):
            raise HubError(f"{repo}: someone else published there meanwhile; run the command again")
        return digest.hexdigest()

    def tag(self, repo: str, tag: str, commit: str) -> None:
        """Write the tag; HubError if it exists."""

        def fill(folder: Path) -> None:
            (folder / "commit").write_text(commit, encoding="ascii")

        if not self._place(repo, f"tags/{tag}", fill):
            raise HubError(f"{repo}@tag {tag}: it exists already; choose another name or tag")

    def _versions(self, repo: str) -> dict[str, Path]:
        with self._plain(repo):
            found = {}
            for path in sorted((self.root / repo / "versions").glob("*/commit")):
                commit = path.read_text(encoding="ascii").strip()
                if path.parent.name.isdigit() and is_commit(commit):
                    found[commit] = path.parent
            return found

    def _place(self, repo: str, name: str, fill: Callable[[Path], None]) -> bool:
        """Fill a folder and rename it to a name that must be free; False if it is taken."""
        target = self.root / repo / name
        with self._plain(repo):
            new = Path(tempfile.mkdtemp(prefix=".new.", dir=self.root / repo))
            try:
                new.chmod(0o755)
                self._sweep(new)
                fill(new)
                for path in new.rglob("*"):
                    if path.is_file():
                        with path.open("rb") as handle:
                            os.fsync(handle.fileno())
                try:
                    # a folder that holds something is never replaced by a rename
                    os.rename(new, target)
                except OSError:
                    if target.exists():
                        return False
                    raise
            finally:
                shutil.rmtree(new, ignore_errors=True)
        return True

    def _sweep(self, new: Path) -> None:
        """Remove what publishers left that were killed more than a day ago, by the share's own clock."""
        for old in new.parent.glob(".new.*"):
            if new.stat().st_mtime - old.stat().st_mtime > 86400:
                shutil.rmtree(old, ignore_errors=True)

    @contextlib.contextmanager
    def _plain(self, repo: str) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise HubError(f"{repo}: {self.label} cannot be used ({reason}); check the share, its space and permissions"
                           ) from None  # fmt: skip
