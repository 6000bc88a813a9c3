"""The place that a run writes to: one run at a time, and no other recipe's result is replaced by mistake."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zoo import ranks
from zoo.errors import ArtifactError, RecipeError
from zoo.paths import run_place, weights_name


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
    """Raise RecipeError for a changed recipe whose result would replace one that is recorded below ``root``.

    The recipe itself may always be run again, with any seed.
    """
    from zoo.compose import compose, names
    from zoo.recipe import content_hash, ends_in_float
    from zoo.results import FLOATS

    name, seed = str(fields["name"]), int(fields.get("seed", 0))
    weights = root / FLOATS / f"{weights_name(name, seed)}.json"
    trains_float = ends_in_float(fields)
    kept = weights if trains_float else root / run_place(name, seed) / "checkpoint"
    try:
        notes = json.loads((kept if trains_float else kept / "metrics.json").read_text(encoding="utf-8"))
        recorded = notes["recipe_sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    mine = content_hash(fields)
    if recorded == mine or (name in names() and mine == content_hash(compose([f"recipe={name}", f"seed={seed}"]))):
        return
    raise RecipeError(f"{name}: this is a changed recipe, and would replace {kept}; add output=DIR or name=NAME")
