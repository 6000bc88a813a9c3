"""What each technique gives: the records below ``results/ablations``, variant beside variant, as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluate.oscillations import facts, oscillations
from evaluate.seeds import require_same
from zoo.errors import ArtifactError
from zoo.recipe_file import read_recipe
from zoo.results import Record, read_records
from zoo.seeds import over_seeds

_HEAD = """# What each technique gives

Generated from the records below `results/ablations`; `python -m zoo.ablate NAME` makes those that are missing. Each
row changes the first row's recipe (`recipes/ablation`) as it says. Top-1 in percent is that of the integer network at
the last epoch, on held-out training images: settings are chosen here, never on test images.

Compare rows only within a section. A row that was run on another kind of processor than the first names it: the order
of sums is another there. Unless a section says otherwise, its float network and the teacher were trained on the
held-out images too: a variant that stays closer to that network may look better because the network remembers these
images.

The interval is that of one accuracy (95 %, Wald) on these images, not of a difference: variants and seeds share
images and start. Oscillating are the low-bit weights that go back and forth between integers at the end of the last
training (frequency above 0.005, as in Nagel et al. 2022).
"""


def ablations_pages(recipes: Path, results: Path) -> dict[Path, str]:
    """Return the page and its plots by path; ArtifactError for a record of a variant that is not in the recipes."""
    blocks, files = [_HEAD], {}
    for path in sorted((recipes / "ablation").glob("*.yaml")):
        spec = read_recipe(path)
        rows = _rows(path.stem, spec, read_records(results / "ablations" / path.stem))
        drawn = _by_layer(rows, spec.get("oscillations", ()))
        blocks.append(_section(path.stem, spec, rows))
        if drawn:
            file = Path("ablations") / f"{path.stem}_oscillations.svg"
            files[results / file] = oscillations(drawn, f"{path.stem}: weights that oscillate at the end")
            blocks.append(f"![Oscillating weights of each layer, {', '.join(drawn)}]({file.as_posix()})\n")
    return {results / "ablations.md": "\n".join(blocks)} | files


def _rows(name: str, spec: Mapping[str, Any], records: Sequence[Record]) -> dict[str, list[Record]]:
    stray = sorted({r.recipe for r in records} - set(spec["variants"]))
    if stray:
        raise ArtifactError(f"results/ablations/{name}/{stray[0]}: no such variant in recipes/ablation/{name}.yaml; "
                            "remove the record")  # fmt: skip
    return {v: [r for r in records if r.recipe == v] for v in spec["variants"]}


def _by_layer(rows: Mapping[str, Sequence[Record]], variants: Sequence[str]) -> dict[str, dict[str, float]]:
    # of several seeds the first: a picture, not a mean
    known = {v: facts(rows[v][0]).get("oscillating_percent_by_layer") for v in variants if rows[v]}
    return {v: parts for v, parts in known.items() if isinstance(parts, dict)}


def _section(name: str, spec: Mapping[str, Any], rows: Mapping[str, Sequence[Record]]) -> str:
    head = f"## `{name}`\n\n{spec['description']}.\n\n"
    if not any(rows.values()):
        return head + "No variant has been run yet.\n"
    base = rows[next(iter(rows))]
    lines = [
        "| variant | changes | top-1 [95 %] | to the first row | oscillating | seeds |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for variant, found in rows.items():
        what = _difference(spec["variants"][variant] or {}) + _elsewhere(found, base)
        name_cell = f"**`{variant}`**, taken" if variant in spec.get("takes", ()) else f"`{variant}`"
        if not found:
            lines.append(f"| {name_cell} | {what} | not run yet | | | |")
            continue
        require_same(f"{name} {variant}", {"steps": [r.steps for r in found]})
        for record in found:
            _require_comparable(f"{name} {variant}", record, (base or found)[0])
        mean = _mean(found)
        half = 196.0 * (mean / 100 * (1 - mean / 100) / found[0].data.n) ** 0.5
        gap = f"{mean - _mean(base):+.2f}" if base and found is not base else ""
        shares = [s for s in (facts(r).get("oscillating_percent") for r in found) if isinstance(s, int | float)]
        swinging = f"{statistics.mean(shares):.2f} %" if shares else ""
        cells = [name_cell, what, f"{mean:.2f} ± {half:.2f}", gap, swinging, over_seeds([r.top1 for r in found])]
        lines.append(f"| {' | '.join(cells)} |")
    return head + "\n".join(lines) + f"\n\n{spec['why']}\n"


def _require_comparable(what: str, record: Record, first: Record) -> None:
    for part, mine, its in (
        ("test images", record.data.fingerprint, first.data.fingerprint),
        ("float weights", record.parent.sha256, first.parent.sha256),
        ("arithmetic", record.semantics, first.semantics),
    ):
        if mine != its:
            raise ArtifactError(f"{what}: its record of seed {record.seed} has other {part} than {first.recipe}, which "
                                "it is compared with; remove it and run python -m zoo.ablate again")  # fmt: skip


def _elsewhere(found: Sequence[Record], base: Sequence[Record]) -> str:
    """Name the processors of a row that are not those of the first row: they round and sum in their own order."""
    others = {r.machine.cpu for r in found} - {r.machine.cpu for r in base}
    return f"; run on {', '.join(sorted(others))}" if base and others else ""


def _mean(records: Sequence[Record]) -> float:
    return statistics.mean(r.top1 for r in records)


def _difference(variant: Mapping[str, Any]) -> str:
    parts = [f"`{field}`" for field in variant.get("fields", ())]
    # to count what oscillates changes nothing
    settings = {k: v for k, v in variant.get("train", {}).items() if k != "oscillations"}
    parts += [f"`{k}: {json.dumps(v).replace('{}', 'defaults')}`" for k, v in settings.items()]
    parts += [f"without `{name}`" for name in variant.get("without", ())]
    parts += ["other steps"] if "steps" in variant else []
    return ", ".join(parts) or "nothing"
