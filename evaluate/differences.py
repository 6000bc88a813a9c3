"""What differs between two runs: what went in, and which tensors came out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from zoo.results import Record


def causes(recorded: Record, again: Record) -> tuple[str, ...]:
    """Name the inputs of two runs that differ: recipe, seed, data, parent, versions, machine, code."""
    pairs: list[tuple[str, Any, Any]] = [
        ("recipe", recorded.recipe_sha256[:12], again.recipe_sha256[:12]),
        ("seed", recorded.seed, again.seed),
        ("test images", recorded.data.fingerprint[:12], again.data.fingerprint[:12]),
        ("calibration images", recorded.calibration.fingerprint[:12], again.calibration.fingerprint[:12]),
        ("float parent", recorded.parent.sha256[:12], again.parent.sha256[:12]),
        ("cpu", recorded.machine.cpu, again.machine.cpu),
        ("accelerator", recorded.machine.accelerator or "none", again.machine.accelerator or "none"),
        ("threads", recorded.machine.threads, again.machine.threads),
    ]
    names = sorted(recorded.versions.keys() | again.versions.keys())
    pairs += [(n, recorded.versions.get(n, "absent"), again.versions.get(n, "absent")) for n in names]
    old, new = (replace(r.git, commit=r.git.commit[:12]).text() for r in (recorded, again))
    pairs.append(("code", old, new))
    return tuple(f"{name} {a} -> {b}" for name, a, b in pairs if a != b)


def checkpoint_differences(recorded: Path, again: Path) -> tuple[str, ...]:
    """Name the tensors and node formats that differ, in the network's order; none where no checkpoint lies here.

    Of a tensor it says how many elements differ.
    """
    if not (recorded / "manifest.json").is_file():
        return ()
    from safetensors.numpy import load_file

    from zoo.artifact.files import parse, verify

    verify(recorded)
    nodes = [parse(folder / "config.json", folder / "config.json")["nodes"] for folder in (recorded, again)]
    old, new = (
        _by_node(found, load_file(folder / "model.safetensors"))
        for found, folder in zip(nodes, (recorded, again), strict=True)
    )
    found = []
    for before, after in zip(nodes[0], nodes[1], strict=False):
        name = before["name"]
        if before != after:
            found.append(f"{name} (format)")
        for key in sorted(k for k in old.keys() | new.keys() if k.rpartition(".")[0] == name):
            a, b = old.get(key), new.get(key)
            if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
                found.append(f"{key} (shape)")
            elif a.tobytes() != b.tobytes():
                found.append(f"{key} ({int((a != b).sum())} of {a.size} elements)")
    if len(nodes[0]) != len(nodes[1]):
        found.append(f"config.json ({len(nodes[0])} -> {len(nodes[1])} nodes)")
    return tuple(found)


def _by_node(nodes: list[dict[str, Any]], tensors: dict[str, Any]) -> dict[str, Any]:
    # the file holds the biases of all nodes in one tensor, the report is about nodes
    found, start = {name: t for name, t in tensors.items() if name != "bias"}, 0
    for node in nodes:
        if "weight" in node:
            end = start + node["weight"]["shape"][0]
            found[f"{node['name']}.bias"], start = tensors["bias"][start:end], end
    return found
