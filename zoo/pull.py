"""``python -m zoo.pull NAME...``: fetch published checkpoints, every file's hash checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from zoo.console import command, entry
from zoo.errors import RecipeError, suggest

HELP = """\
Fetch published checkpoints into the cache; every file's hash is checked, and what is there already costs no request.

usage: python -m zoo.pull NAME... [output=DIR] [verify=pub.pem]

  NAME          a name of the index, org/name, org/name@v1 or file:///FOLDER/org/name
  output=DIR    copy each checkpoint to DIR/NAME besides
  verify=FILE   refuse what the private half of this public key (PEM) did not sign; needs the extra sign
  -h, --help    this text

  ZOO_HUB=file:///FOLDER   take org/name from this folder      ZOO_INDEX=FILE    an index of your own
  HF_ENDPOINT=URL          a mirror                            HF_TOKEN=...      for private repositories
  HF_HUB_OFFLINE=1         the cache only                      ZOO_CACHE=DIR     where the cache is

  in the index: {names}
"""


@dataclass(frozen=True)
class _Options:
    output: str = ""
    verify: str = ""


@command(interrupted="what was fetched whole is kept")
def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 a refusal that the one-line message explains."""
    from zoo.hub import index, options

    known = index.read()
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP.format(names=", ".join(known) or "none yet"))
        return 0
    names, given = options.split(arguments)
    chosen = options.typed(_Options, given, "pull")
    if not names:
        raise RecipeError(f"pull: name a checkpoint{suggest('', known)}")
    places = {name: name.partition("@")[0].rpartition("/")[2] for name in names}
    if chosen.output and len(set(places.values())) < len(places):
        raise RecipeError(f"pull: {' and '.join(names)} would be one folder below {chosen.output}; pull them one by "
                          "one into folders of their own")  # fmt: skip
    for name, place in places.items():
        print(_pull(name, place, chosen))
    return 0


def _pull(name: str, place: str, chosen: _Options) -> str:
    from zoo import list_checkpoints, signing
    from zoo.artifact import files
    from zoo.hub import index
    from zoo.hub.fetch import keep, pull
    from zoo.hub.names import is_address
    from zoo.paths import shipped_checkpoint

    known = index.read()
    shipped = shipped_checkpoint(name)
    if shipped is not None:
        folder, hashes, text = shipped, files.verify(shipped), "comes with the package"
        if chosen.verify:
            signing.verify(shipped, chosen.verify)
    elif name in known or is_address(name):
        got = pull(name, chosen.verify)
        folder, hashes, text = got.folder, got.hashes, f"{got.repo} at commit {got.commit}"
    else:
        raise RecipeError(f"{name!r}: no such checkpoint{suggest(name, {*known, *list_checkpoints()})}")
    if chosen.output:
        folder = keep(folder, Path(chosen.output) / place, hashes)
    signed = f", signed by the key of {chosen.verify}" if chosen.verify else ""
    size = sum((folder / file).stat().st_size for file in hashes)
    return f"{name}: {text}, {len(hashes)} files, {size / 1000:,.1f} kB, every hash right{signed}\n{folder}"


if __name__ == "__main__":
    entry(main)
