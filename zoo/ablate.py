"""Variants of one recipe side by side: ``python -m zoo.ablate NAME [VARIANT ...] [seed=N[,N ...]]``."""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zoo.console import command, entry
from zoo.errors import RecipeError, ZooError, suggest
from zoo.paths import output_dir, recipes_dir
from zoo.recipe_file import read_recipe
from zoo.resolve import build

HELP = """usage: python -m zoo.ablate NAME [VARIANT ...] [seed=N[,N ...]] [output=FOLDER]

Runs the variants of recipes/ablation/NAME.yaml that have no record yet (all, or those named) and keeps a record of
each below results/ablations/NAME; python -m evaluate.table renders them. Their accuracy is that of the
integer network on the data set that NAME names: held-out training images, where settings are chosen.
"""


@dataclass(frozen=True)
class Variant:
    """What differs from the base: fields of the recipe, of every step ``train``, steps left out, or other steps."""

    fields: tuple[str, ...] = ()
    train: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    steps: tuple[Any, ...] | None = None

    def apply(self, fields: dict[str, Any], where: str) -> dict[str, Any]:
        """Return a copy of a resolved recipe with the differences; RecipeError for a step that it has not."""
        changed = copy.deepcopy(fields)
        if self.steps is not None:
            changed["steps"] = copy.deepcopy(list(self.steps))
        steps = [s if isinstance(s, dict) else {s: {}} for s in changed["steps"]]
        present = {name for step in steps for name in step}
        for name in (*self.without, *(["train"] if self.train else [])):
            if name not in present:
                raise RecipeError(f"{where}: the recipe has no step {name}{suggest(name, present)}")
        kept = [s for s in steps if not set(s) & set(self.without)]
        changed["steps"] = [{n: (v or {}) | (self.train if n == "train" else {}) for n, v in s.items()} for s in kept]
        return changed


@dataclass(frozen=True)
class Ablation:
    """``recipes/ablation/NAME.yaml``: a recipe, the fields all variants share, and the variants, the base first.

    ``steps`` stand in place of the recipe's: what was measured stays what it was when the recipe goes on to change.
    ``takes`` are the variants whose difference the recipe has, and ``why`` says why; ``oscillations`` are those
    that are drawn layer by layer.
    """

    recipe: str
    description: str
    common: tuple[str, ...]
    variants: dict[str, Any]
    why: str
    steps: tuple[Any, ...] | None = None
    takes: tuple[str, ...] = ()
    oscillations: tuple[str, ...] = ()

    def variant(self, name: str, where: str) -> Variant:
        """Return one of the variants; RecipeError names the field that is wrong."""
        return build(Variant, self.variants[name] or {}, f"{where}.variants.{name}")


def names() -> list[str]:
    """Return the shipped ablations."""
    return sorted(p.stem for p in (recipes_dir() / "ablation").glob("*.yaml"))


def read(name: str) -> Ablation:
    """Return a shipped ablation; RecipeError for an unknown name or a malformed file."""
    if name not in names():
        raise RecipeError(f"ablation {name!r} is unknown{suggest(name, names())}")
    found = build(Ablation, read_recipe(recipes_dir() / "ablation" / f"{name}.yaml"), name)
    for variant in found.variants:
        found.variant(variant, name)
    return found


def resolve(name: str, variant: str, seed: int, ablation: Ablation | None = None) -> dict[str, Any]:
    """Return the resolved recipe of a variant, of an ablation that is read where none is given."""
    from zoo.compose import compose
    from zoo.recipe import Recipe

    ablation = ablation or read(name)
    where = f"{name}.variants.{variant}"
    chosen = ablation.variant(variant, name)
    base = compose([f"recipe={ablation.recipe}", *ablation.common, *chosen.fields])
    if ablation.steps is not None:
        base["steps"] = list(ablation.steps)
    fields = chosen.apply(base, where) | {"name": variant, "seed": seed}
    Recipe.parse(fields, where)
    return fields


@command(interrupted="the same command again goes on")
def main(arguments: Sequence[str]) -> int:
    """Run what is missing; return 0 when every variant asked for has its record, 1 when one failed, 2 for a mistake."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP + f"\nablations: {', '.join(names())}")
        return 0
    given = dict(a.split("=", 1) for a in arguments if "=" in a)
    unknown = sorted(set(given) - {"seed", "output"})
    if unknown:
        raise RecipeError(f"ablate: {unknown[0]}= is unknown{suggest(unknown[0], ['seed', 'output'])}")
    name, *chosen = [a for a in arguments if "=" not in a] or [""]
    ablation = read(name)
    for variant in chosen:
        if variant not in ablation.variants:
            raise RecipeError(f"{name}: variant {variant!r} is unknown{suggest(variant, ablation.variants)}")
    try:
        seeds = [int(s) for s in given.get("seed", "0").split(",")]
    except ValueError:
        raise RecipeError(f"ablate: seed={given['seed']}: expected whole numbers") from None
    root = Path(given.get("output", output_dir() / "ablations")) / name
    # all are composed before the first is run, so that a mistake does not wait for hours
    runs = {(v, s): resolve(name, v, s, ablation) for s in seeds for v in chosen or ablation.variants}
    failed = 0
    for (variant, seed), fields in runs.items():
        try:
            print(f"{variant}, seed {seed}: {_score(fields, root, f'{name} {variant} seed={seed}'):.2f} %", flush=True)
        except ZooError as error:
            failed += 1
            print(f"{variant}, seed {seed}: {error}", file=sys.stderr)
    return int(failed > 0)


def _score(fields: dict[str, Any], root: Path, words: str) -> float:
    from zoo.paths import run_place
    from zoo.pipeline import run
    from zoo.sweep import recorded

    kept = recorded(fields, root)
    if kept is not None:
        return kept
    done = run(fields, output=root, command=f"python -m zoo.ablate {words}")
    # dozens of networks that nobody is meant to use: the recipe makes each again
    shutil.rmtree(root / run_place(fields["name"], fields["seed"]) / "checkpoint")
    return done.record.top1


if __name__ == "__main__":
    entry(main)
