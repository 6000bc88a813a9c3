"""Checkpoint folders as bytes in memory: made once, changed, signed again, written out."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import zoo
from zoo.artifact.files import MANIFEST
from zoo.paths import results_dir

RECIPE: dict[str, Any] = {
    "name": "every_operation",
    "quant": {
        "weight": {"bits": 4, "granularity": "per_channel"},
        "act": {"bits": 8, "symmetric": False},
        "overrides": [{"match": ":first", "weight": {"bits": 8}}, {"match": "right", "weight": {"bits": 3}},
                      {"match": "gate", "weight": {"bits": 2, "symmetric": False}}],
    },
    "steps": ["fold_batchnorm", "quantize", {"calibrate": {"weight": "minmax", "act": "minmax"}}, "integerize"],
}  # fmt: skip


class EveryOperation(nn.Module):
    """A network of a few hundred parameters that holds each operation of a checkpoint once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(11)
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.Hardswish()
        self.shrink = nn.MaxPool2d(2)
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.gate, self.sigmoid = nn.Conv2d(8, 8, 1), nn.Hardsigmoid()
        self.smooth = nn.AvgPool2d(2)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shrink(self.act(self.stem(x)))
        x = torch.cat([F.relu(self.left(x) + x), self.right(x)], 1)
        x = x * self.sigmoid(self.gate(x.mean((2, 3), keepdim=True)))
        return self.fc(self.smooth(x).mean((2, 3)).flatten(1))  # type: ignore[no-any-return]


class Wide(nn.Module):
    """More channels than a proof takes at once."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(12)
        self.stem, self.fc = nn.Conv2d(3, 192, 1), nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.stem(x)).mean((2, 3)))  # type: ignore[no-any-return]


Entry = bytes | tuple[str, str]  # the content of a file, or ("link", target), ("fifo", ""), ("folder", "")


@dataclass
class Folder:
    """What lies in a checkpoint folder; ``notes`` says what was done to it."""

    files: dict[str, Entry]
    notes: list[str] = field(default_factory=list)

    def copy(self) -> Folder:
        return Folder(dict(self.files), [])

    def content(self, name: str) -> bytes:
        """Return the bytes of a regular file, or none."""
        entry = self.files.get(name, b"")
        return entry if isinstance(entry, bytes) else b""

    def json(self, name: str) -> Any:
        """Return a JSON file's value, or an empty mapping once it is broken."""
        try:
            return json.loads(self.content(name))
        except (ValueError, RecursionError):
            return {}

    def put(self, name: str, value: Any) -> None:
        self.files[name] = json.dumps(value).encode("utf-8", "surrogatepass")

    def sign(self) -> None:
        """Let the manifest fit what lies in the folder, so that the checks behind the hashes are reached."""
        manifest = self.json(MANIFEST)
        if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
            return
        for name, entry in manifest["files"].items():
            if isinstance(entry, dict) and name in self.files:
                entry["sha256"] = hashlib.sha256(self.content(name)).hexdigest()
                entry["size"] = len(self.content(name))
        self.put(MANIFEST, manifest)

    def write(self, folder: Path) -> None:
        """Write everything, in place of what lay there."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, entry in self.files.items():
            path = folder / name
            if isinstance(entry, bytes):
                path.write_bytes(entry)
            elif entry[0] == "link":
                path.symlink_to(entry[1])
            elif entry[0] == "fifo":
                os.mkfifo(path)
            else:
                path.mkdir()


def read(path: Path) -> Folder:
    """Take a folder into memory."""
    return Folder({p.name: p.read_bytes() for p in sorted(path.iterdir())})


def originals(scratch: Path) -> list[tuple[Folder, Tensor]]:
    """Return folders to start from, each with an input; one is shipped, one holds every operation, one is wide."""
    generator = torch.Generator().manual_seed(2)
    loader = [torch.randn(32, 3, 8, 8, generator=generator)]
    plain = RECIPE | {"name": "wide", "quant": {k: v for k, v in RECIPE["quant"].items() if k != "overrides"}}
    made = {"every_operation": (EveryOperation(), RECIPE), "wide": (Wide(), plain)}
    for name, (net, recipe) in made.items():
        zoo.quantize(net.eval(), recipe, loader).save(scratch / name)
    shipped = read(results_dir() / "resnet8_fashion_w4a4" / "checkpoint")
    pictures = torch.randint(0, 256, (2, 1, 28, 28), generator=generator).float()
    return [*((read(scratch / name), loader[0][:2]) for name in made), (shipped, (pictures - 72.9) / 90.0)]


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and body of a safetensors file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: Any, body: bytes, length: int | None = None) -> bytes:
    """Return the file of a header (a value, or the bytes themselves) and a body; ``length`` may lie."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def tensors(data: bytes) -> dict[str, tuple[dict[str, Any], bytes]]:
    """Return each tensor's header entry and bytes."""
    header, body = split(data)
    return {k: (copy.deepcopy(v), body[slice(*v["data_offsets"])]) for k, v in header.items() if k != "__metadata__"}


def from_tensors(entries: dict[str, tuple[dict[str, Any], bytes]]) -> bytes:
    """Return a safetensors file with the offsets that fit."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    body = b""
    for name, (entry, data) in entries.items():
        header[name] = entry | {"data_offsets": [len(body), len(body) + len(data)]}
        body += data
    return join(header, body)
