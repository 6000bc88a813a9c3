"""The place that a run writes to: one run at a time, and no other recipe's result is replaced by mistake."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import ranks
from zoo.errors import ArtifactError, RecipeError
from zoo.paths import run_place, weights_name

_SEED = re.compile(r"(-seed\d+)?\.json\Z")


@contextlib.contextmanager
def held(work: Path) -> Iterator[None]:
    """Hold the folder of a run's snapshots while the run lasts, and remove it and its own if nothing is in them.

    ArtifactError where another run holds it. The first of several processes holds it for all. The lock ends with the
    process, however that ends; where the system has none, nothing is held.
    """
    if not ranks.leader():
        yield
        return
    try:
        work.mkdir(parents=True, exist_ok=True)
        handle = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise ArtifactError(f"{work}: cannot be written ({error.strerror or error}); choose another place with "
                            "output=DIR") from None  # fmt: skip
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError:
        os.close(handle)
        raise ArtifactError(f"{work.parent}: another run is writing there; wait for it, or choose another place with "
                            "output=DIR") from None  # fmt: skip
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            # a run that failed leaves no empty folder behind
            work.rmdir()
            work.parent.rmdir()
        os.close(handle)


def require_own(fields: dict[str, Any], root: Path) -> None:
    """Raise RecipeError for a run whose result would replace that of another recipe or of other float weights.

    What is recorded below ``root`` counts, whether or not its checkpoint is there. The recipe itself, with the weights
    that it names, may always be run again, with any seed.
    """
    from zoo.compose import compose, names
    from zoo.recipe import content_hash, ends_in_float, named_weights

    name, seed = str(fields["name"]), int(fields.get("seed", 0))
    mine = content_hash(fields)
    for kept in _kept(root, name, seed, ends_in_float(fields)):
        try:
            notes = json.loads(kept.read_text(encoding="utf-8"))
            recorded, parent = notes["recipe_sha256"], notes.get("parent", {}).get("sha256")
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if recorded == mine and (parent is None or named_weights(fields.get("model"), str(parent))):
            continue
        if name in names():
            itself = compose([f"recipe={name}", f"seed={seed}"])
            if mine == content_hash(itself) and _weights(fields) == _weights(itself):
                continue
        what = "run starts from other float weights" if recorded == mine else "is a changed recipe"
        place = kept.parent if kept.name == "metrics.json" else kept
        raise RecipeError(f"{name}: this {what}, and would replace {place}; add output=DIR or name=NAME")


def _kept(root: Path, name: str, seed: int, trains_float: bool) -> list[Path]:
    """Return what tells of an earlier run of that name and seed: of the checkpoint first, then of each data set."""
    from zoo.results import FLOATS

    if trains_float:
        return [root / FLOATS / f"{weights_name(name, seed)}.json"]
    ending = f"-seed{seed}.json" if seed else ".json"
    records = [
        path for path in sorted((root / name).glob("*-*.json")) if _SEED.sub("", path.name) + ending == path.name
    ]
    return [root / run_place(name, seed) / "checkpoint" / "metrics.json", *records]


def _weights(fields: dict[str, Any]) -> list[Any]:
    models = (fields.get("model"), fields.get("teacher"))
    return [model.get("weights") if isinstance(model, dict) else None for model in models]
