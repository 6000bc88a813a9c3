"""Render every table and plot from the records: ``python -m evaluate.table [--check]``.

Writes ``results/table.csv``, the pictures and the pages below ``results``, the cards of its checkpoints, and the parts
of ``README.md`` and ``benchmarks/README.md`` between the markers. ``--check`` writes nothing and exits with 1 when one
of them is stale.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluate import curve
from evaluate.ablations import ablations_pages
from evaluate.cards import cards, write_card
from evaluate.floats import float_table
from evaluate.front import front_path, fronts
from evaluate.headline import headline
from evaluate.rows import card_path, order, rows
from evaluate.speeds import speeds
from zoo.artifact import files
from zoo.console import command, entry
from zoo.errors import ArtifactError
from zoo.results import FLOATS, Record, read_records, write_text

BEGIN, END = "<!-- table:begin -->", "<!-- table:end -->"
_COLUMNS = (
    "recipe", "model", "bits", "data", "subset", "n", "data_fingerprint", "semantics", "budget", "float_top1", "top1",
    "drop", "drop_low", "drop_high", "top1_fake", "agreement", "weights_bytes", "float_bytes", "compression", "macs",
    "activation_bytes",
    "seconds", "calibration", "calibration_n", "seed", "python", "torch", "torchvision", "timm", "zoo", "cpu",
    "threads", "commit", "dirty", "artifact_sha256", "parent_sha256", "recipe_sha256",
)  # fmt: skip


def table_csv(records: Sequence[Record]) -> str:
    """Return all records as CSV, one row each; percentages, bytes and seconds are plain numbers."""
    out = io.StringIO()
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in sorted(records, key=order):
        writer.writerow(_row(record))
    return out.getvalue()


def _row(r: Record) -> dict[str, object]:
    row: dict[str, object] = {name: getattr(r, name) for name in _COLUMNS if hasattr(r, name)}
    row.update({name: r.versions.get(name, "") for name in ("python", "torch", "torchvision", "timm", "zoo")})
    row.update({name: f"{getattr(r, name):.4f}" for name in ("float_top1", "top1", "top1_fake", "drop", "agreement")})
    return row | {
        "macs": r.macs or "",
        "activation_bytes": r.activation_bytes or "",
        "data": r.data.name,
        "subset": r.data.subset,
        "n": r.data.n,
        "data_fingerprint": r.data.fingerprint,
        "drop_low": f"{r.drop_interval[0]:.4f}",
        "drop_high": f"{r.drop_interval[1]:.4f}",
        "compression": f"{r.float_bytes / r.weights_bytes:.3f}",
        "seconds": f"{sum(r.seconds.values()):.1f}",
        "calibration": r.calibration.name,
        "calibration_n": r.calibration.n,
        "cpu": r.machine.cpu,
        "threads": r.machine.threads,
        "commit": r.git.commit,
        "dirty": int(r.git.dirty),
        "parent_sha256": r.parent.sha256,
    }


def readme_tables(records: Sequence[Record], absent: frozenset[str] = frozenset()) -> str:
    """Return Markdown: two tables and a picture for each data set, or a line that says that there is no record yet.

    ``absent`` are the recipes whose checkpoint is not in git.
    """
    if not records:
        return "No recipe has been recorded yet.\n"
    blocks = []
    for label, group in itertools.groupby(rows(records), key=lambda row: row.shown.data.label()):
        found = list(group)
        blocks.append(
            f"**{label}**, {_one_or_range([row.shown.data.n for row in found])} images\n\n"
            f"{headline(found, absent)}"
            f"\n![{label}: accuracy versus size](results/{front_path(label).as_posix()})\n\n"
            f"<details><summary>{label}: every recipe, with interval, size, cost, time and hash</summary>\n\n"
            "| recipe | bits | float top-1 | integer top-1 | seeds | drop [95 %] | weights | vs float | MACs "
            "| activations | arithmetic | time | versions | sha256 |\n"
            "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---|---:|---|---|\n"
            + "".join(_readme_row(row.shown, row.seeds, row.shown.recipe in absent) for row in found)
            + "\n</details>\n"
        )
    return "\n".join(blocks)


def _readme_row(r: Record, seeds: str, absent: bool) -> str:
    low, high = r.drop_interval
    cells = (
        f"`{r.recipe}`" if absent else f"[`{r.recipe}`]({card_path(r)})",
        r.bits,
        f"{r.float_top1:.2f}",
        f"**{r.top1:.2f}**",
        seeds,
        f"{r.drop:.2f} [{low:.2f}, {high:.2f}]",
        size(r.weights_bytes) + (", not in git" if absent else ""),
        f"{r.float_bytes / r.weights_bytes:.1f}x smaller",
        millions(r.macs) if r.macs else "",
        size(r.activation_bytes) if r.activation_bytes else "",
        r.semantics,
        duration(sum(r.seconds.values())) + (f" ({r.budget})" if r.budget != "fast" else ""),
        ", ".join(f"{k} {r.versions[k]}" for k in ("torch", "timm", "zoo") if k in r.versions),
        f"`{r.artifact_sha256[:12]}`",
    )
    return "| " + " | ".join(cells) + " |\n"


def size(count: int) -> str:
    """Return bytes as text in kB or MB, powers of ten."""
    return f"{count / 1e6:.2f} MB" if count >= 1_000_000 else f"{count / 1e3:.1f} kB"


def millions(count: int) -> str:
    """Return a count as text in millions."""
    return f"{count / 1e6:.1f} M"


def duration(seconds: float) -> str:
    """Return seconds as text in s or min."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _one_or_range(counts: list[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def put_between(text: str, block: str, where: str) -> str:
    """Return ``text`` with what stands between the markers replaced; a missing or doubled marker raises."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ArtifactError(f"{where}: needs {BEGIN} and {END} once each, in this order; put the lines back")
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{block}{END}{rest.split(END)[1]}"


def render(root: Path) -> dict[Path, str]:
    """Return what every generated file of the checkout at ``root`` should hold; nothing is written."""
    records = read_records(root / "results")
    for record in records:
        _require_same(record, root / "results" / record.checkpoint)
    readme = root / "README.md"
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"{readme}: cannot be read ({error.strerror}); run from a checkout") from None
    tables = readme_tables(records, absent_checkpoints(root)) + float_table(root / "results" / FLOATS)
    pages = {} if not (root / "benchmarks").is_dir() else _speeds(root / "benchmarks")
    return pages | {
        root / "results" / "table.csv": table_csv(records),
        **{root / "results" / p: text for p, text in fronts([row.shown for row in rows(records)]).items()},
        readme: put_between(text, tables, "README.md"),
        **ablations_pages(root / "recipes", root / "results"),
        **_curves(root / "results"),
    }


def _require_same(record: Record, folder: Path) -> None:
    """Raise ArtifactError for a record of other weights than those that lie where its row leads."""
    manifest = folder / files.MANIFEST
    if not manifest.is_file():
        return
    listed = files.parse(manifest, manifest)
    entry = listed.get("files", {}).get("model.safetensors", {}) if isinstance(listed, dict) else {}
    if entry.get("sha256") != record.artifact_sha256:
        raise ArtifactError(f"{record.file}: is the record of {record.artifact_sha256[:12]}, the checkpoint beside it "
                            "is another; run the recipe again, or remove the record")  # fmt: skip


def _speeds(folder: Path) -> dict[Path, str]:
    page = folder / "README.md"
    return {page: put_between(page.read_text(encoding="utf-8"), speeds(folder), "benchmarks/README.md")}


def absent_checkpoints(root: Path) -> frozenset[str]:
    """Return the recipes whose checkpoint the checkout at ``root`` leaves out, line by line in its ``.gitignore``."""
    ignore = root / ".gitignore"
    text = ignore.read_text(encoding="utf-8") if ignore.is_file() else ""
    return frozenset(re.findall(r"^results/([^/*]+)/checkpoint/$", text, re.MULTILINE))


def _curves(results: Path) -> dict[Path, str]:
    # a record's name has a dash, as in zoo.results; tables have none
    files = sorted([*results.glob("*/*-*.csv"), *results.glob("weights/*.csv")])
    return {p.with_suffix(".svg"): curve.curve(curve.read(p), _title(p)) for p in files}


def _title(path: Path) -> str:
    return path.stem if path.parent.name == FLOATS else f"{path.parent.name}, {path.stem}"


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Render or check; return 0, 1 when ``--check`` finds a stale file, or 2 for a record that cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m evaluate.table", description="Render tables from the records.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 when something is stale")
    parser.add_argument("--root", type=Path, default=Path(__file__).resolve().parent.parent, help="the checkout")
    options = parser.parse_args(arguments)
    shown = cards(options.root / "results")
    stale = {p: t for p, t in (render(options.root) | shown).items() if not _same(p, t)}
    for path, text in stale.items():
        if options.check:
            print(f"{path.relative_to(options.root)}: is stale; run python -m evaluate.table", file=sys.stderr)
        else:
            (write_card if path in shown else write_text)(path, text)
            print(f"wrote {path.relative_to(options.root)}")
    return int(options.check and bool(stale))


def _same(path: Path, text: str) -> bool:
    return path.is_file() and path.read_bytes() == text.encode()


if __name__ == "__main__":
    entry(main)
