"""One JSON record per run; every table, card and plot is made from these and from nothing else."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zoo import resolve
from zoo.errors import ArtifactError, RecipeError
from zoo.paths import run_place

if TYPE_CHECKING:
    import numpy as np

FORMAT_VERSION = 1
FLOATS = "weights"  # the folder of float networks trained here, beside those of the recipes
_Z95 = 1.959963984540054  # the 97.5 % point of the normal distribution: two-sided 95 %


@dataclass(frozen=True)
class EvalData:
    """The images that accuracy was measured on; ``subset`` says which part of the split (``full`` or a name)."""

    name: str
    n: int
    subset: str
    fingerprint: str

    def label(self) -> str:
        """Return the data set with its subset, when that is not the whole split."""
        return self.name if self.subset in ("", "full", self.name) else f"{self.name} ({self.subset})"


@dataclass(frozen=True)
class Calibration:
    """The training images that the steps saw."""

    name: str
    n: int
    fingerprint: str


@dataclass(frozen=True)
class Parent:
    """Where the float weights came from, and their sha256."""

    source: str
    sha256: str


@dataclass(frozen=True)
class Machine:
    """What the seconds were measured on; ``accelerator`` is empty where everything ran on the processor."""

    cpu: str
    threads: int
    accelerator: str = ""


@dataclass(frozen=True)
class Git:
    """The code's commit; ``dirty`` when files of ``zoo`` or ``recipes`` differed from it, or nobody could tell."""

    commit: str
    dirty: bool

    def text(self) -> str:
        """Return both as a word or three."""
        return f"{self.commit}{' with changes' if self.dirty else ''}"


@dataclass(frozen=True)
class Record:
    """One run of one recipe. Accuracies, ``agreement`` and ``drop`` are in percent, sizes in bytes, times in seconds.

    ``top1`` is of the integer network, ``top1_fake`` of the fake-quantized one, ``agreement`` the share of images on
    which both choose the same class, ``float_top1`` the float parent's on the same images, ``drop`` float minus
    integer with its paired 95 % interval ``drop_interval``, ``logits_sha256`` over the integer network's logits (empty
    in older records: ``zoo.evaluation.Scores``), ``command`` what makes the record again; ``macs`` and
    ``activation_bytes`` are those of ``zoo.integer.cost`` (0 where the checkpoint was not at hand when they came to be
    recorded). Values out of range raise ValueError.
    """

    recipe: str
    recipe_sha256: str
    model: str
    bits: str
    semantics: str
    budget: str
    data: EvalData
    calibration: Calibration
    seed: int
    top1: float
    top1_fake: float
    agreement: float
    float_top1: float
    drop: float
    drop_interval: tuple[float, float]
    weights_bytes: int
    float_bytes: int
    artifact_sha256: str
    parent: Parent
    seconds: dict[str, float]
    versions: dict[str, str]
    machine: Machine
    git: Git
    command: str
    steps: tuple[str, ...]
    notes: tuple[str, ...] = ()
    logits_sha256: str = ""
    macs: int = 0
    activation_bytes: int = 0

    def __post_init__(self) -> None:
        """Refuse what no run can have produced."""
        for name in ("top1", "top1_fake", "agreement", "float_top1"):
            if not 0.0 <= getattr(self, name) <= 100.0:
                raise ValueError(f"{name} must be a percentage, got {getattr(self, name)}")
        if not self.drop_interval[0] <= self.drop <= self.drop_interval[1]:
            raise ValueError(f"drop {self.drop} is outside its own interval {list(self.drop_interval)}")
        if abs(self.float_top1 - self.top1 - self.drop) > 5e-3:
            raise ValueError(f"drop {self.drop} is not float_top1 - top1 = {self.float_top1 - self.top1:.4f}")
        if self.data.n < 1 or self.weights_bytes < 1 or self.float_bytes < 1:
            raise ValueError("data.n, weights_bytes and float_bytes must be positive")
        if self.macs < 0 or self.activation_bytes < 0:
            raise ValueError("macs and activation_bytes must not be negative")
        for part in (self.recipe, self.data.name, self.semantics):
            if not plain(part):
                raise ValueError(f"{part!r} cannot be part of a file name")

    @property
    def file(self) -> str:
        """The record's place below the results folder: ``<recipe>/<data>-<semantics>[-seed<n>].json``."""
        return f"{self.recipe}/{self.data.name}-{self.semantics}{f'-seed{self.seed}' if self.seed else ''}.json"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint's place below the results folder."""
        return run_place(self.recipe, self.seed) / "checkpoint"

    @property
    def trained(self) -> bool:
        """Whether one of the steps trained the network on labels."""
        return any((next(iter(json.loads(s))) if s.startswith("{") else s) == "train" for s in self.steps)

    @property
    def teacher_sha256(self) -> str:
        """The sha256 of the teacher's weights; empty without a teacher."""
        return teacher_sha256(self.notes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, ``format_version`` included."""
        return {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}


def teacher_sha256(notes: Iterable[str]) -> str:
    """Return the sha256 of the teacher's weights that a record's notes name; empty where they name none."""
    found = next((text for key, _, text in (n.partition(": ") for n in notes) if key == "teacher"), "{}")
    return str(json.loads(found).get("sha256", ""))


def plain(part: str) -> bool:
    """Tell whether the name of a recipe or a data set can be part of a record's file name."""
    return bool(part) and "/" not in part and not part.startswith(".")


def write_record(record: Record, root: Path) -> Path:
    """Write the record below ``root`` and return its path; a reader sees the old file or the new one, never a part.

    A full disk, a missing permission or a number that is not finite raises ArtifactError.
    """
    path = root / record.file
    write_text(path, dump(record.to_dict(), path))
    return path


def read_record(path: Path) -> Record:
    """Read one record; unknown version, unknown or missing fields and wrong types raise ArtifactError."""
    try:
        fields = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror}); run the recipe again") from None
    except ValueError as error:
        raise ArtifactError(f"{path}: is not JSON ({error}); restore it or run the recipe again") from None
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path}: a record is a JSON object; restore it or run the recipe again")
    version = fields.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: format_version {version!r} is unknown, this code reads {FORMAT_VERSION}; run the recipe again"
        )
    try:
        record = resolve.build(Record, fields, str(path))
    except RecipeError as error:
        raise ArtifactError(f"{error}; restore the record or run the recipe again") from None
    if path.parent.name != record.recipe or path.name != Path(record.file).name:
        raise ArtifactError(f"{path}: holds the record of {record.file}; move it there")
    return record


def read_records(root: Path) -> list[Record]:
    """Read every record ``<root>/<recipe>/<data>-<semantics>.json``, by recipe, data set, semantics, seed."""
    return sorted(map(read_record, _record_files(root)), key=lambda r: (r.recipe, r.data.name, r.semantics, r.seed))


def _record_files(root: Path) -> Iterator[Path]:
    # A checkpoint's own JSON lies one folder deeper, or beside without the dash that every record's name has; what is
    # beside float weights is no record, with a dash or without.
    return (path for path in root.glob("*/*-*.json") if path.parent.name != FLOATS)


def paired_interval(
    correct_float: np.ndarray[Any, Any], correct_quant: np.ndarray[Any, Any]
) -> tuple[float, float, float]:
    """Return ``(drop, low, high)`` in percentage points: float accuracy minus quantized, with a 95 % interval.

    Both arguments are bool ``[N]``, entry i of both being the same image. Only the images that one network gets right
    and the other wrong carry information: with ``b`` images that only the float network gets right and ``c`` that only
    the quantized one does, the per-image differences in {-1, 0, 1} have mean ``d = (b - c) / N`` and the interval is
    Wald's for their mean after Agresti and Min's (2005) half image in each cell of the 2x2 table, which keeps it from
    collapsing to zero width where the networks never disagree::

        n' = N + 2, b' = b + 1/2, c' = c + 1/2, d' = (b' - c') / n'
        low, high = d' -+ 1.96 * sqrt(b' + c' - (b' - c')**2 / n') / n'

    and is widened to hold ``d`` itself. ValueError when the shapes differ or there is no image.
    """
    if correct_float.ndim != 1 or correct_float.shape != correct_quant.shape or correct_float.size == 0:
        raise ValueError(f"need two equally long vectors, got {correct_float.shape} and {correct_quant.shape}")
    if correct_float.dtype != bool or correct_quant.dtype != bool:
        raise ValueError(f"need bool, got {correct_float.dtype} and {correct_quant.dtype}")
    n = correct_float.size
    b = int((correct_float & ~correct_quant).sum())
    c = int((~correct_float & correct_quant).sum())
    drop = 100.0 * (b - c) / n
    padded = n + 2
    # The half images cancel in b' - c'.
    spread = math.sqrt(b + c + 1 - (b - c) ** 2 / padded)
    centre, half = 100.0 * (b - c) / padded, 100.0 * _Z95 * spread / padded
    return drop, max(-100.0, min(drop, centre - half)), min(100.0, max(drop, centre + half))


def dump(value: Any, where: object, indent: int = 2) -> str:
    """Return JSON text with sorted keys and a final newline: the same values give the same bytes.

    A number that is not finite and what JSON cannot hold raise ArtifactError, which names ``where``.
    """
    try:
        text = json.dumps(value, indent=indent, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
        text.encode()  # half a surrogate pair has no bytes
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"{where}: a number is not finite, or a value is none that JSON holds ({error}); "
                            "if the run diverged, change the recipe"
                            ) from None  # fmt: skip
    return text


def write_text(path: Path, text: str) -> None:
    """Write a file under a temporary name, flush it to disk and rename it; failures raise ArtifactError."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Do as ``write_text`` does with bytes."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private to the user
        os.replace(temporary, path)
    except OSError as error:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise ArtifactError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another folder"
        ) from None


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number that JSON knows")
