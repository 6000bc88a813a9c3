"""Accounts, repositories, commits and blobs, in memory."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Account:
    """Who owns a token, and what it may do."""

    name: str
    orgs: tuple[str, ...]
    role: str

    def member(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs

    def writes(self, namespace: str) -> bool:
        return self.role == "write" and self.member(namespace)


ACCOUNTS = {
    "hf_writer-of-org": Account("ann", ("org",), "write"),
    "hf_second-writer": Account("zoe", ("org",), "write"),
    "hf_reader-of-org": Account("bob", ("org",), "read"),
    "hf_writer-elsewhere": Account("eve", ("other",), "write"),
}


@dataclass(frozen=True)
class Blob:
    """A file's content; ``lfs`` says how it is stored."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git


@dataclass
class Repo:
    """Commits from the first to the newest; a commit's files never change."""

    private: bool
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def add(self, files: dict[str, Blob], branch: str = "main") -> str:
        text = f"{len(self.commits)} {sorted((name, b.sha256) for name, b in files.items())}"
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = files
        self.branches[branch] = oid
        return oid

    def find(self, revision: str) -> str | None:
        if revision in self.commits:
            return revision
        return self.branches.get(revision) or self.tags.get(revision)


def lfs_by_name(path: str, size: int) -> bool:
    """Tell what the hub stores apart from git: weights, and whatever is large."""
    return path.endswith((".safetensors", ".bin", ".onnx")) or size > 10_000_000


class Store:
    """All repositories, and the objects that were uploaded but not committed yet."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}

    def create(self, name: str, private: bool) -> Repo:
        self.repos[name] = Repo(private)
        self.repos[name].add({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
        return self.repos[name]
