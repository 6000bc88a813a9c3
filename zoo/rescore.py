"""``python -m zoo.rescore NAME|FOLDER``: measure a checkpoint's integers again, on the images its recipe names."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from zoo.console import command, entry
from zoo.errors import ArtifactError
from zoo.paths import local_checkpoint


@dataclass(frozen=True)
class Rescored:
    """``top1`` in percent of the ``n`` images with this fingerprint; sha256 of the weights and of the logits."""

    top1: float
    n: int
    fingerprint: str
    artifact_sha256: str
    logits_sha256: str


def rescore(folder: Path) -> Rescored:
    """Return what the integer network of a checkpoint scores; needs the data set, but no float weights.

    Raises ArtifactError for a damaged checkpoint or one without a recipe, DataError where the images are missing.
    """
    from zoo.artifact import checkpoint
    from zoo.data import DataConfig, load_split
    from zoo.evaluation import predict
    from zoo.hub.rescore import recipe_of
    from zoo.pipeline import configure
    from zoo.preprocess import Preprocess
    from zoo.resolve import build

    held = checkpoint.read(folder)
    where = str(folder / "recipe.yaml")
    if not held.metrics:
        raise ArtifactError(f"{folder}: was never measured and names no test images, as what zoo.quantize makes; "
                            "measure it with images of yours")  # fmt: skip
    if not held.recipe:
        raise ArtifactError(f"{where}: is missing or empty, so no data set is known; fetch the checkpoint again")
    recipe = recipe_of(held, folder)
    configure(recipe)
    test = load_split(build(DataConfig, recipe.data, f"{where}: data"), "test", recipe.test_limit)
    network = held.network(integer=True)
    if len(test.classes) != held.config["num_classes"]:
        raise ArtifactError(f"{where}: {test.name} has {len(test.classes)} classes, the network gives another number")
    scores = predict(network, test, Preprocess.from_dict(held.config["preprocess"]), "integer")
    return Rescored(
        scores.top1, len(test), test.fingerprint, held.hashes["model.safetensors"], scores.logits_sha256
    )  # fmt: skip


@command()
def main(arguments: list[str]) -> int:
    """Print the scores as one line of JSON; return 0, or 2 for what cannot be measured."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(__doc__)
        return 0 if arguments in (["-h"], ["--help"]) else 2
    print(json.dumps(vars(rescore(local_checkpoint(arguments[0]) or Path(arguments[0]))), sort_keys=True))
    return 0


if __name__ == "__main__":
    entry(main)
