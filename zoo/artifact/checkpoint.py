"""Save a Program with all that describes it, and load it back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor, fx, nn

from zoo.artifact import files
from zoo.artifact.codec import decode, encode
from zoo.artifact.config import FORMAT_VERSION, check_config, check_preprocess
from zoo.errors import ArtifactError, DataError, QuantError
from zoo.integer.exact import altered, follow_integers
from zoo.integer.layers import build_integer
from zoo.integer.program import Program
from zoo.integer.shapes import shapes
from zoo.integer.simulated import build_simulated
from zoo.preprocess import Preprocess
from zoo.results import dump

_MAX_WEIGHTS = 2**30  # bytes; the largest network of this zoo takes 5 MB
_MAX_ELEMENTS = 2**26  # of one image's tensor: 50 times the largest of MobileNetV2


class Network(nn.Module):
    """A quantized network: call it on ``[N, C, H, W]`` floats from ``preprocess``, get ``[N, classes]`` logits.

    ``.to(device)`` moves it. One that computes on integers raises QuantError where it is asked for another type.
    """

    def __init__(
        self, graph: fx.GraphModule, program: Program, config: Mapping[str, Any], card: str, recipe: str = "",
        metrics: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Hold the graph with what belongs to it."""
        super().__init__()
        self.graph_module, self.program, self.config, self.card = graph, program, dict(config), card
        self.recipe, self.metrics = recipe, dict(metrics or {})
        self.preprocess = Preprocess.from_dict(config["preprocess"])
        self.labels: tuple[str, ...] = tuple(config["labels"])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits; an image of another type or size than the checkpoint's raises DataError."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise DataError(f"{self.config['name']}: the input must be a tensor of floats, got {kind}; use .preprocess")
        if tuple(x.shape[1:]) != self.program.input_shape:
            wanted = ", ".join(map(str, self.program.input_shape))
            raise DataError(
                f"{self.config['name']}: the input must be [N, {wanted}], got {list(x.shape)}; use .preprocess"
            )
        return self.graph_module(x)  # type: ignore[no-any-return]

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder that ``zoo.load`` reads, whole or not at all; ArtifactError says what hindered.

        A network whose weights, biases, scales or tables were changed since it was made is refused: its integers, card
        and accuracy are those from before.
        """
        names = altered(self.graph_module, self.program)
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ArtifactError(
                f"{folder}: what {names[0]}{more} of {self.config['name']} holds was changed, and would be saved as "
                "the integers from before; quantize the changed network by a recipe or zoo.quantize, and save that"
            )
        save(Path(folder), self.program, self.config, recipe=self.recipe, metrics=self.metrics, card=self.card)


@dataclass(frozen=True)
class Checkpoint:
    """What a folder holds, before a network is built from it."""

    program: Program
    config: dict[str, Any]
    card: str
    hashes: dict[str, str]
    recipe: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)

    def network(self, *, integer: bool = False, semantics: str | None = None) -> Network:
        """Build the integer network (in the checkpoint's semantics, or another) or the fake-quantized one.

        Scales and codes that the arithmetic cannot carry raise ArtifactError.
        """
        chosen = semantics or self.config["semantics"]
        try:
            if integer:
                graph = build_integer(self.program, chosen)
            else:
                graph = follow_integers(build_simulated(self.program, chosen), self.program, chosen)
        except QuantError as error:
            raise ArtifactError(f"{self.config['name']}: arithmetic {chosen}: {error}") from None
        return Network(graph, self.program, self.config, self.card, self.recipe, self.metrics)


def tensor_bytes(tensors: Mapping[str, Tensor]) -> bytes:
    """Return the content of model.safetensors. One metadata key only: with more, the library's byte order is random."""
    return to_bytes({k: tensors[k] for k in sorted(tensors)}, metadata={"format": "pt"})


def save(
    folder: Path, program: Program, config: Mapping[str, Any], *, recipe: str, metrics: Mapping[str, Any], card: str
) -> None:
    """Write the checkpoint folder atomically: weights, config.json, recipe.yaml, metrics.json, README.md, manifest.

    Raises ArtifactError where the folder cannot be written, where it holds something else than a checkpoint, for
    what JSON or UTF-8 cannot hold, and for a network that could not be read again.
    """
    tensors, nodes = encode(program)
    decode(tensors, nodes, list(program.input_shape), str(folder))
    full = dict(config) | {
        "format_version": FORMAT_VERSION, "nodes": nodes, "input_shape": list(program.input_shape),
    }  # fmt: skip

    folder = Path(folder)
    try:
        texts = {
            "config.json": dump(full, folder / "config.json", indent=1).encode(),
            "recipe.yaml": recipe.encode(),
            "metrics.json": dump(metrics, folder / "metrics.json", indent=1).encode(),
            "README.md": card.encode(),
        }
    except UnicodeEncodeError as error:
        raise ArtifactError(f"{folder}: the recipe or the card has no UTF-8 form ({error}); correct the text") from None

    def fill(temporary: Path) -> None:
        (temporary / "model.safetensors").write_bytes(tensor_bytes(tensors))
        for name, text in texts.items():
            (temporary / name).write_bytes(text)

    files.write_folder(folder, fill)


def read(folder: Path) -> Checkpoint:
    """Verify every hash, then parse and check everything. Raises ArtifactError naming the file and the field."""
    folder = Path(folder)
    hashes = files.verify(folder)
    where = str(folder / "config.json")
    config = check_config(files.parse_text(files.content(folder, "config.json", hashes), where), where)
    weights = files.content(folder, "model.safetensors", hashes, _MAX_WEIGHTS)
    try:
        tensors = from_bytes(weights)
    except (SafetensorError, ValueError, KeyError, OverflowError) as error:  # KeyError: a type torch has not
        raise ArtifactError(f"{folder / 'model.safetensors'}: not a readable safetensors file ({error}); "
                            "fetch the checkpoint again") from None  # fmt: skip
    program = decode(tensors, config["nodes"], config["input_shape"], where)
    # What the nodes compute is not run here: torch works out its shape, and has many ways to refuse.
    try:
        found = shapes(program)
    except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(f"{where}: the nodes do not fit together ({reason}); fetch the checkpoint again") from None
    last = found[program.nodes[-1].name]
    if len(last) != 2:
        raise ArtifactError(
            f"{where}: the last node gives {list(last)}, a classifier gives [N, classes]; do not use it"
        )
    largest = max(found, key=lambda name: math.prod(found[name]))
    if math.prod(found[largest]) > _MAX_ELEMENTS:
        raise ArtifactError(f"{where}: {largest} gives {list(found[largest])}, which is beyond any edge network")
    if last[1] != config["num_classes"]:
        raise ArtifactError(f"{where}: num_classes is {config['num_classes']}, the last node gives {last[1]}; "
                            "correct num_classes")  # fmt: skip
    check_preprocess(config, where)
    card, recipe = (_text(folder, name, hashes) for name in ("README.md", "recipe.yaml"))
    metrics: Any = {}
    if "metrics.json" in hashes:
        metrics = files.parse_text(files.content(folder, "metrics.json", hashes), folder / "metrics.json")
    if not isinstance(metrics, dict):
        raise ArtifactError(f"{folder / 'metrics.json'}: must hold a mapping; fetch the checkpoint again")
    return Checkpoint(program, config, card, hashes, recipe, metrics)


def _text(folder: Path, name: str, hashes: Mapping[str, str]) -> str:
    if name not in hashes:
        return ""
    try:
        return files.content(folder, name, hashes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{folder / name}: not readable as text ({error}); fetch the checkpoint again") from None
