"""The fields of ``recipes/model/NAME.yaml``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from zoo.errors import DataError
from zoo.preprocess import Preprocess

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NEEDS = {"mirror": ("path",), "package": ("path",), "url": ("url",), "hub": ("repo_id", "path", "revision")}


@dataclass(frozen=True)
class Source:
    """Where a weight file may come from.

    ``mirror``: ``path`` below ``$ZOO_MIRROR``, else below ``../shared`` beside a checkout. ``package``: ``path`` below
    the results folder. ``url``: a download. ``hub``: the file ``path`` of ``repo_id`` at ``revision``.
    """

    kind: Literal["mirror", "package", "url", "hub"]
    sha256: str = ""
    path: str = ""
    url: str = ""
    repo_id: str = ""
    revision: str = ""

    def __post_init__(self) -> None:
        """Refuse a source that names no file, or a sha256 that cannot be one."""
        for name in _NEEDS[self.kind]:
            if not getattr(self, name):
                raise ValueError(f"a source of kind {self.kind!r} needs {name!r}")
        parts = PurePosixPath(self.path)
        if self.kind != "hub" and self.path and (parts.is_absolute() or ".." in parts.parts):
            raise ValueError(f"path must lie below its folder, got {self.path!r}")
        if self.url and not self.url.startswith(("https://", "http://")):
            raise ValueError(f"url must begin with https://, got {self.url!r}")
        if not (self.url.isascii() and self.url.isprintable()):
            raise ValueError(f"url must be printable ASCII, got {self.url!r}; write other characters as %XX")
        if self.url and not urlsplit(self.url).hostname:
            raise ValueError(f"url names no host, got {self.url!r}")
        _check_sha256(self.sha256)

    @property
    def label(self) -> str:
        """Name the source in records, without a path of this machine: a hub id, or ``kind:path``."""
        return self.repo_id if self.kind == "hub" else f"{self.kind}:{self.url or self.path}"


@dataclass(frozen=True)
class WeightConfig:
    """``layout``: ``torch`` (our own state dict) or a converter of ``zoo/weights/keras.py``; sources in order.

    ``tensors_sha256`` is checked after conversion, whatever the source: see ``zoo.weights.tensors_sha256``. A source
    without a ``sha256`` of its file is accepted only under it.
    """

    sources: tuple[Source, ...]
    layout: Literal["torch", "keras_resnet8", "keras_mobilenetv1"] = "torch"
    tensors_sha256: str = ""

    def __post_init__(self) -> None:
        """Refuse weights that nothing verifies."""
        _check_sha256(self.tensors_sha256)
        if not self.sources:
            raise ValueError("sources is empty; write 'weights: null' for an untrained network")
        for source in self.sources:
            if not (source.sha256 or self.tensors_sha256):
                raise ValueError(f"{source.label}: give its sha256, or a tensors_sha256 for all sources")


@dataclass(frozen=True)
class ModelConfig:
    """A network with its weights and preprocessing.

    ``builder`` is a file of ``zoo/models`` and ``args`` are what its ``build`` takes; ``preprocess`` holds the fields
    of ``zoo.preprocess.Preprocess``; ``labels`` names a label list; ``weights`` is null for an untrained network.
    """

    name: str
    builder: str
    preprocess: dict[str, Any]
    args: dict[str, Any] = field(default_factory=dict)
    labels: str | None = None
    license: str = "unknown"
    description: str = ""
    weights: WeightConfig | None = None

    def __post_init__(self) -> None:
        """Refuse a preprocessing that is none, before any weight is fetched."""
        try:
            Preprocess.from_dict(dict(self.preprocess))
        except DataError as error:
            raise ValueError(str(error)) from None


def _check_sha256(value: str) -> None:
    if value and not _SHA256.match(value):
        raise ValueError(f"a sha256 has 64 lower-case hexadecimal digits, got {value!r}")
