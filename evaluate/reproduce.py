"""Make recorded numbers again: ``python -m evaluate.reproduce NAME...|--all [--seeds] [--weights-only]``.

Each row runs in a fresh process. The exit code is 0 when every row holds, 1 when one differs, 2 for what cannot be run.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluate.differences import causes, checkpoint_differences
from zoo.console import command, entry
from zoo.errors import ArtifactError, RecipeError, ZooError, suggest
from zoo.paths import results_dir
from zoo.progress import SHOWN
from zoo.recipe_file import read_recipe
from zoo.results import Record, read_record, read_records
from zoo.seeds import row_of

IDENTICAL, WITHIN, SAME, DIFFERS, FAILED = (
    "byte-identical", "within tolerance", "same accuracy", "differs", "not run",
)  # fmt: skip
_ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """How one record came back. ``top1`` in percent (None when it did not run), ``tolerance`` in points.

    ``tensors`` names what differs in the checkpoint, ``causes`` what differed before the run began.
    """

    recipe: str
    verdict: str
    recorded: float
    top1: float | None
    tolerance: float
    tensors: tuple[str, ...] = ()
    causes: tuple[str, ...] = ()
    note: str = ""

    @property
    def holds(self) -> bool:
        """Return whether the number stands."""
        return self.verdict in (IDENTICAL, WITHIN, SAME)


def rerun(record: Record, root: Path, *, python: str = sys.executable, changes: dict[str, Any] | None = None) -> Row:
    """Run the recorded recipe in a fresh process into a temporary folder and compare what comes out.

    ``root`` is the results folder of the record; ``python`` another interpreter, ``changes`` other top-level fields of
    the recipe, such as ``{"threads": 1}`` (both for measuring what they change).
    """
    kept = root / record.checkpoint
    with tempfile.TemporaryDirectory(prefix="reproduce-") as scratch:
        recipe, tolerance = _recorded_recipe(record, kept, Path(scratch), changes or {})
        out = Path(scratch) / "results"
        done = _child(python, "zoo.run", f"recipe={recipe}", f"output={out}")
        if done.returncode:
            return Row(_title(record), FAILED, record.top1, None, tolerance, note=_last(done))
        again = read_record(out / record.file)
        tensors = checkpoint_differences(kept, out / record.checkpoint)
    found = causes(record, again)
    exact = again.artifact_sha256 == record.artifact_sha256 and not tensors
    if again.data.fingerprint != record.data.fingerprint:
        verdict = DIFFERS  # accuracies on other images say nothing about each other
    elif exact and again.top1 == record.top1 and record.logits_sha256 in ("", again.logits_sha256):
        verdict = IDENTICAL
    else:
        verdict = WITHIN if abs(again.top1 - record.top1) <= tolerance + 1e-9 else DIFFERS
    if not exact and not tensors:
        tensors = ("model.safetensors (the recorded one is not here)",)
    return Row(_title(record), verdict, record.top1, again.top1, tolerance, tensors, found)


def rescore(record: Record, root: Path) -> Row:
    """Measure the shipped checkpoint again in a fresh process; integers leave no room, so the tolerance is 0."""
    kept = root / record.checkpoint
    if not _shipped(record, root):
        note = "its checkpoint is not in this checkout; run it without --weights-only"
        return Row(_title(record), FAILED, record.top1, None, 0.0, note=note)
    done = _child(sys.executable, "zoo.rescore", str(kept))
    if done.returncode:
        return Row(_title(record), FAILED, record.top1, None, 0.0, note=_last(done))
    again = json.loads(done.stdout)
    pairs = {
        "weights": (record.artifact_sha256, again["artifact_sha256"]),
        "data": (record.data.fingerprint, again["fingerprint"]),
        "logits": (record.logits_sha256 or again["logits_sha256"], again["logits_sha256"]),
    }
    found = tuple(f"{k} {a[:12]} -> {b[:12]}" for k, (a, b) in pairs.items() if a != b)
    verdict = SAME if not found and again["top1"] == record.top1 else DIFFERS
    return Row(_title(record), verdict, record.top1, again["top1"], 0.0, causes=found)


def _shipped(record: Record, root: Path) -> bool:
    return (root / record.checkpoint / "manifest.json").is_file()


def _recorded_recipe(record: Record, kept: Path, scratch: Path, changes: dict[str, Any]) -> tuple[str, float]:
    """Return what ``recipe=`` takes, and the tolerance in points: of the checkpoint's own recipe where it lies here."""
    file = kept / "recipe.yaml"
    if not file.is_file():
        file = scratch / "recipe.yaml"
        done = _child(sys.executable, *_composing(record))
        if done.returncode:
            raise RecipeError(f"{record.recipe}: {_last(done)}")
        file.write_text(done.stdout, encoding="utf-8")
    fields = read_recipe(file) | changes
    if changes:
        file = scratch / "changed.yaml"
        file.write_text(yaml.safe_dump(fields, sort_keys=False), encoding="utf-8")
    tolerance = fields.get("tolerance")
    points = tolerance.get("top1", 0.0) if isinstance(tolerance, dict) else 0.0
    if not isinstance(points, (int, float)) or not 0 <= points <= 100:
        raise RecipeError(f"{record.recipe}: tolerance.top1 must be points in 0..100, got {points!r}")
    return str(file), float(points)


def _composing(record: Record) -> list[str]:
    words = shlex.split(record.command)
    if words[:3] != ["python", "-m", "zoo.run"]:
        raise ArtifactError(f"{record.recipe}: its command {record.command!r} is no zoo.run; run the recipe again")
    return ["zoo.run", *words[3:], "check=true"]


def _child(python: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this checkout, whatever folder one stands in; what it says meanwhile is shown as it comes."""
    environment = os.environ | {"PYTHONPATH": str(_ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"}
    environment |= {SHOWN: "1"} if sys.stderr.isatty() else {}
    words = [python, "-m", module, *arguments]
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    said = ""
    with tempfile.TemporaryFile() as out:
        # unbuffered, as a read then returns with what is there
        with subprocess.Popen(words, stdout=out, stderr=subprocess.PIPE, env=environment, bufsize=0) as process:
            assert process.stderr is not None
            try:
                while data := process.stderr.read(1 << 16):
                    text = decode(data)
                    print(text, end="", file=sys.stderr, flush=True)
                    said += text
            except BaseException:
                process.kill()
                raise
        out.seek(0)
        return subprocess.CompletedProcess(words, process.returncode, out.read().decode(errors="replace"), said)


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    ended = f"killed by signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return (
        lines[-1].removeprefix("error: ")
        if lines and done.returncode == 2
        else f"{ended}: {(lines or ['no word'])[-1]}"
    )


def choose(names: Sequence[str], root: Path, seeds: bool = False) -> list[Record]:
    """Return the records of these recipes, or all: those of the lowest seed, which tables show, or of all ``seeds``.

    An unknown name raises RecipeError.
    """
    records = read_records(root)
    known = {r.recipe for r in records}
    for name in names:
        if name not in known:
            raise RecipeError(f"{name!r}: no record of that recipe in {root.name}/{suggest(name, known)}")
    lowest: dict[tuple[str, ...], int] = {}
    for record in records:
        lowest[row_of(record)] = min(record.seed, lowest.get(row_of(record), record.seed))
    return [r for r in records if (not names or r.recipe in names) and (seeds or r.seed == lowest[row_of(r)])]


def _title(record: Record) -> str:
    return f"{record.recipe} seed={record.seed}" if record.seed else record.recipe


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text, and below each what differs."""
    width = max([len(r.recipe) for r in rows] + [6])
    lines = [f"{'recipe':{width}}  {'recorded':>8}  {'again':>8}  {'allowed':>7}  verdict"]
    for r in rows:
        again = "-" if r.top1 is None else f"{r.top1:.4f}"
        lines.append(f"{r.recipe:{width}}  {r.recorded:8.4f}  {again:>8}  {r.tolerance:7.2f}  {r.verdict}")
        more = f" and {len(r.tensors) - 1} more" if len(r.tensors) > 1 else ""
        lines += [f"    first difference: {r.tensors[0]}{more}"] if r.tensors else []
        lines += [f"    changed since: {'; '.join(r.causes)}"] if r.causes else []
        lines += [f"    {r.note}"] if r.note else []
    return "\n".join([*lines, f"{sum(r.holds for r in rows)} of {len(rows)} rows hold"]) + "\n"


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run and print; return 0 when all rows hold, 1 when one differs, 2 when one cannot be run or is unknown."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.reproduce", description="Make recorded numbers again.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes with a record")
    parser.add_argument("--all", action="store_true", help="every recipe with a record")
    parser.add_argument("--seeds", action="store_true", help="all seeds, not only the one that tables show")
    parser.add_argument("--weights-only", action="store_true", help="only measure the shipped checkpoints again")
    parser.add_argument("--results", type=Path, default=results_dir(), help="where the records lie")
    options = parser.parse_args(arguments)
    if bool(options.names) == options.all:
        parser.error("name recipes, or give --all")
    rows = []
    for record in choose(options.names, options.results, options.seeds):
        if options.all and options.weights_only and not _shipped(record, options.results):
            print(f"{_title(record)}: its checkpoint is not here; name it without --weights-only", file=sys.stderr)
            continue
        print(f"{_title(record)}: {'rescoring' if options.weights_only else record.command}", file=sys.stderr)
        try:
            rows.append((rescore if options.weights_only else rerun)(record, options.results))
        except ZooError as error:  # the other rows are worth their hours
            rows.append(Row(_title(record), FAILED, record.top1, None, 0.0, note=str(error)))
    print(table(rows), end="")
    return 2 if not rows or any(r.verdict == FAILED for r in rows) else int(not all(r.holds for r in rows))


if __name__ == "__main__":
    entry(main)
