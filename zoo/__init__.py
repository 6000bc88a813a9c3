"""Low-bit vision networks that run in integers: recipes, checkpoints, and numbers that come back.

``load(name)`` gives a prequantized network, ``quantize(model, recipe, loader)`` quantizes your own,
``compare(model, quantized, loader)`` measures what that cost, ``list_recipes()`` and ``list_checkpoints()`` say what
there is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import nn

    from zoo.artifact.checkpoint import Network
    from zoo.comparison import Comparison
    from zoo.preprocess import Preprocess

__version__ = "0.1.0"
__all__ = ["__version__", "compare", "list_checkpoints", "list_recipes", "load", "quantize"]


def list_recipes() -> list[str]:
    """Return the names of the shipped recipes."""
    from zoo.paths import recipes_dir

    return sorted(p.stem for p in (recipes_dir() / "recipe").glob("*.yaml"))


def list_checkpoints() -> list[str]:
    """Return the names that ``load`` finds without a download."""
    from zoo.paths import results_dir

    return sorted(p.parent.parent.name for p in results_dir().glob("*/checkpoint/manifest.json"))


def load(name_or_path: str | Path, integer: bool = False) -> Network:
    """Return a prequantized network by name or from a folder, every file's hash verified first.

    ``integer=False`` gives the fake-quantized network (float arithmetic, fastest on a CPU), ``integer=True`` the one
    that computes in integers only, in the checkpoint's semantics. It has ``.preprocess`` (picture -> input),
    ``.labels`` and ``.card``. Raises ArtifactError for a missing, altered or malformed checkpoint.
    """
    from zoo.loading import load_network

    return load_network(name_or_path, integer=integer)


def quantize(
    model: nn.Module, recipe: str | dict[str, Any], calibration_loader: Iterable[Any], *,
    preprocess: Mapping[str, Any] | Preprocess | None = None, labels: Sequence[str] = (),
) -> Network:  # fmt: skip
    """Quantize your own float network with a recipe's formats and steps, and return the integer network.

    ``recipe`` is the name of a shipped recipe without the step train, the path of a resolved one (``.yaml``), or a
    mapping with ``steps`` and ``quant``, a name of ``recipes/quant`` or its fields; ``calibration_loader`` yields
    preprocessed float batches ``[N, C, H, W]`` of training images, alone or as the first of a tuple. The result's
    ``.save(folder)`` writes a checkpoint that ``load`` reads; it keeps ``labels``, one text a class, and
    ``preprocess``, what your loader did: ``mean`` and ``std`` a channel in pixels of 0..255 (0 and 1 when not
    given, with a warning where the loader's values are no such pixels), ``resize`` and ``interpolation``
    (``zoo.preprocess.Preprocess``). Raises GraphError for an operation without a quantized form, RecipeError for a
    bad recipe, DataError for fewer than 16 images or ones that ``preprocess`` cannot make; fewer than the recipe
    asks for are taken, with a warning.
    """
    from zoo.loading import quantize_network

    return quantize_network(model, recipe, calibration_loader, preprocess=preprocess, labels=labels)


def compare(model: nn.Module, quantized: nn.Module, test_loader: Iterable[Any]) -> Comparison:
    """Measure a float network and its quantized one on the same labelled images, and what the difference is worth.

    ``test_loader`` yields preprocessed float batches ``[N, C, H, W]``, each with its labels ``[N]``: images that
    neither training nor quantization has seen. The result has ``top1`` and ``float_top1`` in percent, ``drop`` in
    points with its paired 95 % interval ``drop_interval``, and ``agreement``; printed, it is a sentence. The networks
    are put into eval mode and back. Raises DataError for batches without labels, labels that are no class, and
    networks that give different numbers of classes.
    """
    from zoo.comparison import compare_networks

    return compare_networks(model, quantized, test_loader)
