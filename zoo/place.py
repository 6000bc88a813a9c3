"""The place that a run writes to: one run at a time, and no other recipe's result is replaced by mistake."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from zoo import ranks
from zoo.errors import ArtifactError, RecipeError
from zoo.paths import run_place, weights_name


class Earlier(NamedTuple):
    """What came of an earlier run, and the sha256 of what it was made of: recipe, float weights, the teacher's weights.

    ``teacher`` is empty where there was none, as ``weights`` is for a network that started from random ones.
    """

    recipe: str
    weights: str
    teacher: str
    seed: int
    top1: float

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Read a record, the metrics of a checkpoint or the notes beside float weights.

        OSError, ValueError, KeyError, TypeError or AttributeError for a file that is none of them.
        """
        from zoo.results import teacher_sha256

        kept = json.loads(path.read_text(encoding="utf-8"))
        if "log" in kept:
            weights, teacher = kept["start"]["sha256"], kept["log"].get("teacher", {}).get("sha256", "")
        else:
            weights, teacher = kept["parent"]["sha256"], teacher_sha256(kept["notes"])
        return cls(kept["recipe_sha256"], weights, teacher, kept["seed"], float(kept["top1"]))

    def is_of(self, fields: dict[str, Any]) -> bool:
        """Tell whether a run of this resolved recipe, seed included, would be made of the same."""
        from zoo.recipe import content_hash, named_weights

        taken = ((fields["model"], self.weights), (fields.get("teacher"), self.teacher))
        return self.recipe == content_hash(fields) and all(named_weights(model, sha256) for model, sha256 in taken)


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

    So does one that a table would take for another seed of that result. What is recorded below ``root`` counts, whether
    or not its checkpoint is there; the teacher's weights count as the network's own do. The recipe itself, with the
    weights that it names, may always be run again, with any seed.
    """
    from zoo.compose import compose, names
    from zoo.recipe import content_hash, ends_in_float

    name, seed = str(fields["name"]), int(fields.get("seed", 0))
    for kept in _kept(root, name, seed, ends_in_float(fields)):
        try:
            earlier = Earlier.read(kept)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        alike = fields | {"seed": earlier.seed}
        if earlier.is_of(alike):
            continue
        itself = compose([f"recipe={name}", f"seed={seed}"]) if name in names() else {}
        if content_hash(fields) == content_hash(itself) and _weights(fields) == _weights(itself):
            return
        what = "run takes other float weights" if earlier.recipe == content_hash(alike) else "is a changed recipe"
        place = kept.parent if kept.name == "metrics.json" else kept
        effect = "would replace" if earlier.seed == seed else "would be taken for another seed of"
        raise RecipeError(f"{name}: this {what}, and {effect} {place}; give it another output=DIR or name=NAME")


def _kept(root: Path, name: str, seed: int, trains_float: bool) -> list[Path]:
    """Return what may tell of an earlier run of that name and seed: of the checkpoint first, then every record."""
    from zoo.results import FLOATS

    if trains_float:
        return [root / FLOATS / f"{weights_name(name, seed)}.json"]
    return [root / run_place(name, seed) / "checkpoint" / "metrics.json", *sorted((root / name).glob("*-*.json"))]


def _weights(fields: dict[str, Any]) -> list[Any]:
    models = (fields.get("model"), fields.get("teacher"))
    return [model.get("weights") if isinstance(model, dict) else None for model in models]
