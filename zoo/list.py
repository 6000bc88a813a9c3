"""Say what exists: ``python -m zoo.list`` prints recipes, models, data sets, steps and checkpoints.

``python -m zoo.list STEP`` prints what a step does, and its fields with their defaults.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from zoo import resolve
from zoo.console import command, entry
from zoo.errors import RecipeError
from zoo.hub import index
from zoo.paths import recipes_dir, results_dir
from zoo.results import read_records
from zoo.seeds import over_seeds, row_of


def describe(folder: Path) -> dict[str, str]:
    """Return ``{name: description}`` of the YAML files in a folder, sorted; a broken file raises RecipeError.

    The description is the field of that name, or else the first comment that is not Hydra's.
    """
    return {path.stem: _description(path) for path in sorted(folder.glob("*.yaml"))}


def overview() -> str:
    """Return the text that ``python -m zoo.list`` prints; imports neither torch nor hydra."""
    root = recipes_dir()
    blocks = [
        _block("recipes: python -m zoo.run recipe=NAME", describe(root / "recipe")),
        _block("models: model=NAME", describe(root / "model")),
        _block("data sets: data=NAME", describe(root / "data")),
        _block("formats: quant=NAME", describe(root / "quant")),
        "steps, in a recipe's list; python -m zoo.list STEP prints the fields of one:\n  "
        + (", ".join(resolve.names("zoo.steps")) or "none"),
        "checkpoints: zoo.load(NAME)\n" + _checkpoints(results_dir()),
    ]
    return "\n\n".join(blocks) + "\n"


def step(name: str) -> str:
    """Return what a step does, and its fields with types and defaults; RecipeError for an unknown one."""
    kind = getattr(resolve.load("zoo.steps", name, "zoo.list"), resolve.class_name(name))
    fields = [(f.name, f"{f.type} = {_default(f)}") for f in dataclasses.fields(kind)]
    return f"{name}: {inspect.cleandoc(kind.__doc__)}\n\n" + _block("fields", dict(fields)) + "\n"


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "required" if field.default is dataclasses.MISSING else repr(field.default)


def _description(path: Path) -> str:
    fields = _yaml(path)
    if "description" in fields:
        return str(fields["description"])
    comments = (s[1:].strip() for s in path.read_text(encoding="utf-8").splitlines() if s.startswith("#"))
    return next((s for s in comments if s and not s.startswith("@package")), "")


def _yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise RecipeError(f"{path.name}: is not readable YAML ({reason}); mend or restore it") from None
    if fields is None:
        return {}
    if not isinstance(fields, dict):
        raise RecipeError(f"{path.name}: expected fields, got {type(fields).__name__}; mend or restore it")
    return fields


def _block(title: str, items: Mapping[str, str]) -> str:
    width = max(map(len, items), default=0)
    lines = [f"  {name:{width}}  {text}".rstrip() for name, text in items.items()] or ["  none"]
    return "\n".join([f"{title}", *lines])


def _checkpoints(root: Path) -> str:
    published = {name: f"{entry.repo}@{entry.tag}" for name, entry in index.read().items()}
    header = ("name", "bits", "top-1", "over seeds", "float", "size", "images", "arithmetic", "file")
    records = read_records(root)
    seeds: dict[tuple[str, ...], list[float]] = {}
    for r in records:
        seeds.setdefault(row_of(r), []).append(r.top1)
    rows = [
        (
            r.recipe,
            r.bits,
            f"{r.top1:.2f} %",
            over_seeds(seeds[row_of(r)]),
            f"{r.float_top1:.2f} %",
            f"{r.weights_bytes / 1e3:,.0f} kB",
            f"{r.data.name}, {r.data.n:,}",
            r.semantics,
            # Large checkpoints are not kept in git: the recipe makes them, byte for byte.
            "here"
            if (root / r.checkpoint / "manifest.json").is_file()
            else published.get(r.recipe) or "run the recipe",
        )
        for r in records
        if r.seed == 0
    ]
    return _columns([header, *rows]) if rows else "  none yet"


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  " + "  ".join(f"{c:{w}}" for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


@command()
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the overview, or a step; return 0, or 2 when a file cannot be read or there is no such step."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print(__doc__, end="")
        return 0 if set(arguments) <= {"-h", "--help"} else 2
    print(step(arguments[0]) if arguments else overview(), end="")
    return 0


if __name__ == "__main__":
    entry(main)
