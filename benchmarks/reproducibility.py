"""What changes a checkpoint: ``python -m benchmarks.reproducibility [--python PY] NAME...``.

Runs recorded recipes again with other thread counts and, with ``--python``, in another environment (another torch),
and adds the rows to ``benchmarks/reproducibility.json``, from which the table in ``docs/reproduce.md`` is made.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluate.reproduce import choose, rerun
from zoo.paths import results_dir
from zoo.results import dump, write_text

OUT = Path(__file__).with_name("reproducibility.json")
DOC = Path(__file__).resolve().parents[1] / "docs" / "reproduce.md"
BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"


def rendered(rows: list[dict[str, Any]]) -> str:
    """Return the table of the document."""
    lines = [
        "| recipe | run with | top-1 recorded | top-1 again | outcome | tensors that differ |",
        "|---|---|---:|---:|---|---|",
    ]
    for row in rows:
        count = len(row["tensors"])
        first = f"{count}, first `{row['tensors'][0]}`" if count else "none"
        cells = (
            f"`{row['recipe']}`",
            row["setting"],
            f"{row['recorded']:.2f}",
            f"{row['top1']:.2f}",
            row["verdict"],
            first,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def document(text: str, rows: list[dict[str, Any]]) -> str:
    """Return the document's text with its table made anew."""
    head, rest = text.split(BEGIN)
    return f"{head}{BEGIN}\n{rendered(rows)}{END}{rest.split(END)[1]}"


def measure(name: str, threads: int, python: str) -> dict[str, Any]:
    """Run one recipe again and return its row; ``setting`` names the threads and versions that it ran with."""
    (record,) = choose([name], results_dir())
    changes = {} if threads == record.machine.threads else {"threads": threads}
    row = rerun(record, results_dir(), python=python, changes=changes)
    if row.top1 is None:
        raise SystemExit(f"{name}: {row.note}")
    # the recipe differs by its thread count only, and the commit is this one
    told = [c for c in row.causes if not c.startswith(("code ", "recipe "))]
    setting = ", ".join(told) or f"the recorded machine, {threads} threads"
    return asdict(row) | {"setting": setting, "causes": told}


def main(arguments: list[str] | None = None) -> int:
    """Measure, write the JSON, and make the document's table anew."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reproducibility", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="recipes with a record; none only makes the table anew")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--python", default=sys.executable, help="the interpreter of another environment")
    options = parser.parse_args(arguments)
    rows: list[dict[str, Any]] = json.loads(OUT.read_text()) if OUT.is_file() else []
    for name in options.names:
        for threads in options.threads:
            made = measure(name, threads, options.python)
            rows = [r for r in rows if (r["recipe"], r["setting"]) != (name, made["setting"])] + [made]
            rows.sort(key=lambda r: (r["recipe"], r["setting"]))
            write_text(OUT, dump(rows, OUT))
            print(f"{name}: {made['setting']}: {made['verdict']}", flush=True)
    if DOC.is_file():
        write_text(DOC, document(DOC.read_text(encoding="utf-8"), rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
