"""Save a Program with all that describes it, and load it back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, fx, nn

from zoo.artifact import files
from zoo.artifact.codec import decode, encode
from zoo.errors import ArtifactError, DataError
from zoo.integer.layers import build_integer
from zoo.integer.program import Program
from zoo.integer.shapes import shapes
from zoo.integer.simulated import build_simulated
from zoo.preprocess import Preprocess
from zoo.resolve import names

FORMAT_VERSION = 1
_CONFIG = {"format_version", "name", "architecture", "semantics", "input_shape", "nodes", "preprocess", "labels",
           "quantization_config", "provenance", "num_classes", "license"}  # fmt: skip


class Network(nn.Module):
    """A quantized network: call it on ``[N, C, H, W]`` floats from ``preprocess``, get ``[N, classes]`` logits."""

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
        """Return the logits; an image of another size than the checkpoint's raises DataError."""
        if tuple(x.shape[1:]) != self.program.input_shape:
            wanted = ", ".join(map(str, self.program.input_shape))
            raise DataError(
                f"{self.config['name']}: the input must be [N, {wanted}], got {list(x.shape)}; use .preprocess"
            )
        return self.graph_module(x)  # type: ignore[no-any-return]

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint folder that ``zoo.load`` reads, whole or not at all; ArtifactError says what hindered."""
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
        """Build the integer network (in the checkpoint's semantics, or another) or the fake-quantized one."""
        if integer:
            graph = build_integer(self.program, semantics or self.config["semantics"])
        else:
            graph = build_simulated(self.program, semantics or self.config["semantics"])
        return Network(graph, self.program, self.config, self.card, self.recipe, self.metrics)


def tensor_bytes(program: Program, path: Path) -> None:
    """Write model.safetensors. One metadata key only: with more, the library's byte order is random."""
    tensors, _ = encode(program)
    save_file({k: tensors[k] for k in sorted(tensors)}, path, metadata={"format": "pt"})
    path.chmod(0o644)


def save(
    folder: Path, program: Program, config: Mapping[str, Any], *, recipe: str, metrics: Mapping[str, Any], card: str
) -> None:
    """Write the checkpoint folder atomically: weights, config.json, recipe.yaml, metrics.json, README.md, manifest."""
    _, nodes = encode(program)
    full = dict(config) | {
        "format_version": FORMAT_VERSION, "nodes": nodes, "input_shape": list(program.input_shape),
    }  # fmt: skip

    def fill(temporary: Path) -> None:
        tensor_bytes(program, temporary / "model.safetensors")
        (temporary / "config.json").write_text(files.dump(full))
        (temporary / "recipe.yaml").write_text(recipe)
        (temporary / "metrics.json").write_text(files.dump(metrics))
        (temporary / "README.md").write_text(card)

    files.write_folder(folder, fill)


def read(folder: Path) -> Checkpoint:
    """Verify every hash, then parse and check everything. Raises ArtifactError naming the file and the field."""
    folder = Path(folder)
    hashes = files.verify(folder)
    config = files.parse(folder / "config.json", folder / "config.json")
    where = str(folder / "config.json")
    if not isinstance(config, dict) or config.get("format_version") != FORMAT_VERSION:
        version = config.get("format_version") if isinstance(config, dict) else None
        raise ArtifactError(f"{where}: format_version {version!r} is unknown, this version reads {FORMAT_VERSION}; "
                            "upgrade the package")  # fmt: skip
    missing, extra = sorted(_CONFIG - set(config)), sorted(set(config) - _CONFIG)
    if missing or extra:
        raise ArtifactError(f"{where}: field {(missing or extra)[0]!r} is {'missing' if missing else 'unknown'}")
    if config["semantics"] not in names("zoo.integer.semantics"):
        raise ArtifactError(f"{where}: semantics {config['semantics']!r} is unknown")
    labels = config["labels"]
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ArtifactError(f"{where}: labels must be a list of strings")
    try:
        Preprocess.from_dict(config["preprocess"])
    except (DataError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{where}: {error}") from None
    try:
        tensors = load_file(folder / "model.safetensors")
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactError(f"{folder / 'model.safetensors'}: not a readable safetensors file ({error})") from None
    program = decode(tensors, config["nodes"], config["input_shape"], where)
    try:
        shapes(program)
    except (RuntimeError, ValueError, IndexError, TypeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ArtifactError(f"{where}: the nodes do not fit together ({reason})") from None
    card, recipe = (_text(folder / name) if name in hashes else "" for name in ("README.md", "recipe.yaml"))
    metrics = files.parse(folder / "metrics.json", folder / "metrics.json") if "metrics.json" in hashes else {}
    return Checkpoint(program, config, card, hashes, recipe, metrics if isinstance(metrics, dict) else {})


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path}: not readable as text ({error})") from None
