"""``python -m zoo.sweep recipe=A,B seed=0,1,2``: run every combination, one after another or on a cluster's workers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from zoo.console import command, entry
from zoo.errors import RecipeError, ZooError
from zoo.paths import output_dir, recipes_dir

HELP = """\
Run every combination of some values of some fields. A run that fails does not stop the others; a combination whose
record is there already is not run again. Afterwards python -m evaluate.table puts the records into the tables.

usage: python -m zoo.sweep recipe=A,B [seed=0,1,2] [field=v1,v2 ...] [hydra/launcher=NAME] [output=DIR]

  recipe=A,B seed=0,1,2        six runs; the fields are those of python -m zoo.run
  hydra/launcher=workers       processes of this machine, all at once (extra slurm)
  hydra/launcher=slurm         jobs of a Slurm cluster (extra slurm); hydra.launcher.partition=NAME and the like
  hydra/launcher=cluster       tasks of a Ray cluster (extra ray)
  quant.act.bits=4,3           other fields too; each value then writes below a folder of its name
  output=DIR                   where to write (default: results/ of a checkout, ./results otherwise)
  -h, --help                   this text
"""
_OUTPUT, _VARIED, _OUTCOME = "ZOO_SWEEP_OUTPUT", "ZOO_SWEEP_VARIED", "outcome.json"


@command()
def main(arguments: list[str]) -> int:
    """Run the sweep; return 0 when every run has its record, 1 when one failed, 2 for a mistake in the command."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    own = [a.removeprefix("output=") for a in arguments if a.startswith("output=")]
    overrides = [a for a in arguments if not a.startswith("output=")]
    varied, count = _check(overrides)
    root = Path(own[-1]).resolve() if own else output_dir()
    folder = root / ".sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    # workers of a cluster get the place in their environment
    words = [f"hydra.sweep.dir={_quoted(str(folder))}", "hydra.sweep.subdir=${hydra.job.num}"]
    words += [f"+hydra.job.env_set.{k}={_quoted(v)}" for k, v in ((_OUTPUT, str(root)), (_VARIED, ",".join(varied)))]
    sys.argv = ["zoo.sweep", "--multirun", *words, "hydra.output_subdir=null", *overrides]
    # a launcher ends so when one of its workers was killed; the report says which
    with contextlib.suppress(SystemExit):
        one()
    return report(folder, count)


@hydra.main(config_path=str(recipes_dir()), config_name="config", version_base="1.3")  # type: ignore[untyped-decorator]
def one(config: DictConfig) -> None:
    """Run one combination and leave ``outcome.json`` in the job's folder, whatever happens."""
    settings = HydraConfig.get()
    outcome: dict[str, Any] = {"overrides": list(settings.overrides.task)}
    try:
        fields = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(fields, dict)
        plain = {str(key): value for key, value in fields.items()}
        varied = os.environ[_VARIED].split(",")
        apart = [o.replace("/", "_") for o in outcome["overrides"] if o.partition("=")[0] in varied]
        outcome |= attempt(plain, outcome["overrides"], Path(os.environ[_OUTPUT], *apart))
    except ZooError as error:
        outcome |= {"state": "failed", "why": str(error)}
    except Exception as error:  # a run that fails must not stop the others
        outcome |= {"state": "failed", "why": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        traceback.print_exc()
    place = Path(settings.runtime.output_dir)
    place.mkdir(parents=True, exist_ok=True)
    (place / _OUTCOME).write_text(json.dumps(outcome), encoding="utf-8")


def attempt(fields: dict[str, Any], overrides: list[str], root: Path) -> dict[str, Any]:
    """Run a recipe unless its record is there; return ``state`` (kept or made) and ``top1``.

    Raises RecipeError where a changed recipe would replace what another one has made.
    """
    from zoo.pipeline import dry, run
    from zoo.place import require_own
    from zoo.recipe import ends_in_float
    from zoo.training import train_float

    kept = recorded(fields, root)
    if kept is not None:
        return {"state": "kept", "top1": kept}
    dry(fields)
    require_own(fields, root)
    command = shlex.join(["python", "-m", "zoo.run", *overrides])
    if ends_in_float(fields):
        return {"state": "made", "top1": train_float(fields, output=root, command=command).top1}
    return {"state": "made", "top1": run(fields, output=root, command=command).record.top1}


def recorded(fields: dict[str, Any], root: Path) -> float | None:
    """Return the accuracy of this very recipe, seed and float weights where it is recorded, else None."""
    from zoo.place import Earlier
    from zoo.results import FLOATS, read_records

    files = [root / record.file for record in read_records(root)] + sorted((root / FLOATS).glob("*.json"))
    return next((e.top1 for e in map(Earlier.read, files) if e.is_of(fields)), None)


def report(folder: Path, count: int) -> int:
    """Print a line for each of so many runs; return 1 if one failed or left no word."""
    failed = 0
    for job in (folder / str(number) for number in range(count)):
        try:
            outcome = json.loads((job / _OUTCOME).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            outcome = {"overrides": [f"run {job.name}"], "state": "failed", "why": f"left no outcome in {job}"}
        failed += outcome["state"] == "failed"
        told = outcome.get("why") or f"{outcome['top1']:.2f} %"
        print(f"{outcome['state']:6}  {' '.join(outcome['overrides'])}: {told}")
    print(f"{count - failed} of {count} runs have their number")
    return int(failed > 0)


def _quoted(text: str) -> str:
    """Return a text as one value of Hydra's grammar, whatever is in it."""
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text)
    return f"'{escaped}'"


def _check(overrides: list[str]) -> tuple[list[str], int]:
    """Return the fields with several values, beside recipe and seed, and how many combinations there are.

    Refuses what no run could be made of: unknown names anywhere, and anything else in the first combination.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    from zoo.compose import check_names, compose

    first, varied, count = [], [], 1
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException as error:
        raise RecipeError(f"sweep: {' '.join(str(error).split())[:200]}; expected field=value[,value ...]") from None
    for override in parsed:
        key, several = override.get_key_element(), override.is_sweep_override()
        values = list(override.sweep_string_iterator()) if several else [override.get_value_string()]
        if key == "hydra/launcher":
            _require(values)
        if key.startswith("hydra"):
            continue
        for value in values:
            check_names(key, value)
        first.append(f"{key}={values[0]}")
        count *= len(values)
        varied += [key] if several and key not in ("recipe", "seed") else []
    if not any(word.startswith("recipe=") for word in first):
        raise RecipeError("sweep: name at least one recipe: recipe=A,B")
    compose(first)
    return varied, count


def _require(launchers: list[str]) -> None:
    from importlib.util import find_spec

    known = dict.fromkeys(("slurm", "workers", "submitit_slurm", "submitit_local"), "slurm")
    known |= dict.fromkeys(("cluster", "ray"), "ray")
    plugins = {"slurm": "hydra_plugins.hydra_submitit_launcher", "ray": "hydra_plugins.hydra_ray_launcher"}
    for launcher in launchers:
        extra = known.get(launcher)
        try:
            found = extra is None or find_spec(plugins[extra]) is not None
        except ModuleNotFoundError:
            found = False
        if not found:
            raise RecipeError(f"hydra/launcher={launcher}: install the extra: pip install 'lowbit-zoo[{extra}]'")


if __name__ == "__main__":
    # by its own name, so that workers find it again
    from zoo.sweep import main as by_name

    entry(by_name)
