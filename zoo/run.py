"""``python -m zoo.run recipe=NAME [field=value ...]``: quantize, evaluate, save, record."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from zoo.compose import check_names, compose, names
from zoo.console import command, entry
from zoo.errors import RecipeError, ZooError
from zoo.recipe_file import read_recipe

_OWN = ("output", "check")
_FIRST = "resnet8_fashion_w4a4"  # needs no download; the README's first command

HELP = """\
Quantize a network by a recipe, save the checkpoint, measure it, write the record.

usage: python -m zoo.run recipe=NAME [field=value ...]
       python -m zoo.list                     recipes, models, data sets, checkpoints with accuracy and size

  recipe=NAME            one of: {recipes}
  recipe=FILE.yaml       a resolved recipe, such as a checkpoint's recipe.yaml; takes no further fields
  FIELD=VALUE            change any field, e.g. seed=1 test_limit=1000 steps.3.calibrate.act=percentile quant.act.bits=6
  model=NAME data=NAME quant=NAME   swap a whole group
  output=DIR             where to write (default: results/ of a checkout, ./results otherwise); a changed recipe that
                         would replace what another made asks for another place, or for name=NAME
  check=true             resolve and print the recipe, run nothing
  hub.publish=true hub.repo=org/name   publish the checkpoint afterwards; further: hub.tag hub.dry_run hub.private
                         hub.timm hub.sign, as python -m zoo.publish --help says
  -h, --help             this text

  {example}
"""


@command(interrupted="no result was written; the same command again goes on where a training was")
def main(arguments: list[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 a mistake that the one-line message explains."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return 0
    fields, own = resolve(arguments)
    check = _flag("check", own.get("check", "false"))
    hub = _hub(own)
    from zoo.pipeline import dry, run
    from zoo.recipe import ends_in_float

    dry(fields)
    if hub is not None and ends_in_float(fields):
        raise RecipeError("hub.publish: only integer networks are published; this recipe ends with a float one")
    if check:
        from zoo.recipe_file import yaml_text

        print(yaml_text(fields), end="")
        return 0
    from zoo.paths import output_dir
    from zoo.place import require_own
    from zoo.training import train_float

    if hub is not None:
        from zoo.hub.publish import check_access

        check_access(hub)  # so that no long run is in vain
    output = Path(own["output"]) if "output" in own else None
    require_own(fields, output or output_dir())
    # where it was written to is no part of what was computed
    told = [a for a in arguments if a.partition("=")[0] not in _OWN and not a.startswith("hub.")]
    line = shlex.join(["python", "-m", "zoo.run", *told])
    if ends_in_float(fields):
        trained = train_float(fields, output=output, command=line)
        print(f"{fields['name']}: {trained.top1:.2f} % top-1 on {trained.n} images, float\nweights {trained.path}\n"
              f"sha256 {trained.sha256}\ntensors_sha256 {trained.tensors_sha256}")  # fmt: skip
        return 0
    done = run(fields, output=output, command=line)
    report(done)
    if hub is not None:
        from zoo.hub.publish import publish
        from zoo.publish import report as report_release

        try:
            report_release(publish(done.folder, hub))
        except ZooError:
            print(f"the checkpoint is kept: python -m zoo.publish {done.folder} repo={hub.repo}", file=sys.stderr)
            raise
    return 0


def _flag(name: str, value: str) -> bool:
    if value not in ("true", "false"):
        raise RecipeError(f"{name}: expected true or false, got {value!r}")
    return value == "true"


def _hub(own: dict[str, str]) -> Any:
    """Return where to publish, None if nowhere."""
    given = {key.removeprefix("hub."): value for key, value in own.items() if key.startswith("hub.")}
    if not _flag("hub.publish", given.pop("publish", "false")):
        if given:
            raise RecipeError(f"hub.{next(iter(given))}: nothing is published without hub.publish=true")
        return None
    from zoo.hub import options
    from zoo.hub.publish import Options

    return options.typed(Options, given, "hub")


def report(done: Any) -> None:
    """Print what a run made."""
    r = done.record
    low, high = r.drop_interval
    print(f"{r.recipe}: {r.top1:.2f} % top-1 in integers ({r.semantics}), float {r.float_top1:.2f} %, "
          f"drop {r.drop:.2f} [{low:.2f}, {high:.2f}] on {r.data.n} images of {r.data.name}")  # fmt: skip
    print(f"{r.bits}, {r.weights_bytes / 1000:.1f} kB instead of {r.float_bytes / 1000:.1f} kB; fake-quantized "
          f"{r.top1_fake:.2f} %, same class on {r.agreement:.2f} % of the images")  # fmt: skip
    print(f"checkpoint {done.folder}")


def help_text() -> str:
    """Return the help, with the recipes there are."""
    known = names()
    first = _FIRST if _FIRST in known else next(iter(known), "NAME")
    return HELP.format(recipes=", ".join(known), example=f"start with: python -m zoo.run recipe={first}")


def resolve(arguments: list[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the composed recipe as plain values, and our own options. RecipeError for anything Hydra refuses."""
    own: dict[str, str] = {}
    overrides = []
    file: Path | None = None
    for argument in arguments:
        key, _, value = argument.partition("=")
        if not value or not key:
            raise RecipeError(f"{argument!r}: expected field=value; try python -m zoo.run --help")
        if key in _OWN or key.startswith("hub."):
            own[key] = value
        elif key == "recipe" and value.endswith(".yaml"):
            file = Path(value)
        else:
            check_names(key, value)
            overrides.append(argument)
    if file is None:
        return compose(overrides), own
    if overrides:
        raise RecipeError(f"{file}: is resolved already, {overrides[0]!r} cannot change it; edit the file")
    fields = read_recipe(file)
    if "defaults" in fields:
        raise RecipeError(f"{file}: names parts of the repository (defaults), which only recipe=NAME takes from there; "
                          f"try recipe={file.stem}")  # fmt: skip
    return fields, own


if __name__ == "__main__":
    entry(main)
