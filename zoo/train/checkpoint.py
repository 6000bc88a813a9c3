"""Snapshots of a training in progress: safetensors beside JSON, whole or not at all, the last two kept."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor, fx

from zoo.artifact import files
from zoo.errors import ArtifactError
from zoo.results import dump, write_bytes, write_text

KEPT = 2
_VERSION = 1


class Snapshots:
    """The folder of one training; ``identity`` is the hash of everything that its result depends on."""

    def __init__(self, folder: Path, identity: str, code: str = "unknown") -> None:
        """Name the folder; it is made by the first save. ``code`` is the commit that trains now."""
        self.folder, self.identity, self.codes = folder, identity, [code]

    def save(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write tensors, then the JSON that vouches for them; remove what is older than the last two.

        Raises ArtifactError for a full disk.
        """
        from safetensors.torch import save

        path = self.folder / f"step-{step:09d}.safetensors"
        write_bytes(path, save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}))
        facts = facts | {"version": _VERSION, "identity": self.identity, "step": step, "sha256": files.sha256(path)}
        facts["codes"] = self.codes
        write_text(path.with_suffix(".json"), dump(facts, path.with_suffix(".json"), indent=1))
        for old in sorted(self.folder.glob("step-*.json"))[:-KEPT]:
            old.unlink(missing_ok=True)
            old.with_suffix(".safetensors").unlink(missing_ok=True)

    def go_on(self, facts: dict[str, Any]) -> None:
        """Remember by whose code the snapshot was made; commits are in the order of their work."""
        earlier = facts.get("codes")
        found = [c for c in earlier if isinstance(c, str)] if isinstance(earlier, list) else ["unknown"]
        self.codes = list(dict.fromkeys([*found, *self.codes]))

    def latest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the newest snapshot that is whole and of this very training; None where there is none."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        for path in sorted(self.folder.glob("step-*.json"), reverse=True):
            try:
                facts = files.parse(path, path)
                data = path.with_suffix(".safetensors").read_bytes()
                whole = hashlib.sha256(data).hexdigest() == facts["sha256"]
                if whole and (facts["version"], facts["identity"]) == (_VERSION, self.identity):
                    return load(data), facts
            except (ArtifactError, OSError, SafetensorError, KeyError, TypeError):
                continue
        return None


def wiring(net: fx.GraphModule) -> dict[str, Any]:
    """Return what a graph computes apart from its tensors: its nodes, and each module's kind and plain settings."""
    plain = (bool, int, float, str, tuple)
    modules = {
        name: {"kind": type(m).__name__, "text": m.extra_repr()}
        | {key: repr(value) for key, value in vars(m).items() if isinstance(value, plain) and not key.startswith("_")}
        for name, m in net.named_modules()
        if name
    }
    return {"nodes": str(net.graph), "modules": modules}


def identity_of(parts: dict[str, Any]) -> str:
    """Return the sha256 of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
