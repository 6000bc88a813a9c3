"""``python -m zoo.publish NAME repo=org/name``: load a checkpoint back, score it again, publish it, verify it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zoo.console import command, entry
from zoo.errors import RecipeError, suggest

HELP = """\
Publish a checkpoint: it is loaded back and scored again, sent in one commit, downloaded and compared, then tagged.

usage: python -m zoo.publish NAME repo=org/name [option=value ...]

  NAME            a checkpoint's name or folder, or a recipe, which is run first
  repo=ADDRESS    org/name on the Hugging Face Hub, or file:///FOLDER/org/name
  tag=v2          the version (default: the next free one); versions never move
  dry_run=true    do everything but write; needs no token
  private=true    make a new repository private
  timm=true       add timm/: the weights multiplied out to float, which timm loads
  sign=key.pem    add a signature by this private key (PEM); needs the extra sign
  -h, --help      this text

  HF_TOKEN=...  the token (or: hf auth login)    ZOO_INDEX=FILE  the index to extend    HF_ENDPOINT=URL  another hub
"""


@command(interrupted="nothing was released; the same command again goes on")
def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 done, 2 a refusal that the one-line message explains."""
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP)
        return 0
    from zoo.hub import options
    from zoo.hub.publish import Options, check_access, publish

    names, given = options.split(arguments)
    if len(names) != 1:
        raise RecipeError(f"publish: expected one checkpoint, got {names or 'none'}; see --help")
    chosen = options.typed(Options, given, "publish")
    check_access(chosen)
    report(publish(_folder(names[0]), chosen))
    return 0


def report(done: Any) -> None:
    """Print what is released."""
    entry = done.entry
    if done.new and not done.dry:
        print(f"released {entry.repo}@{entry.tag}, commit {entry.commit}, {entry.top1:.2f} % top-1 on {entry.n} images")
    if done.index is not None:
        print(f"index {done.index}")


def _folder(name: str) -> Path:
    from zoo import list_checkpoints
    from zoo.compose import compose, names
    from zoo.paths import local_checkpoint

    folder = local_checkpoint(name)
    if folder is not None:
        return folder
    if name not in names():
        raise RecipeError(f"{name!r}: no such checkpoint, folder or recipe{suggest(name, list_checkpoints())}")
    from zoo.pipeline import run

    return run(compose([f"recipe={name}"]), command=f"python -m zoo.run recipe={name}").folder


if __name__ == "__main__":
    entry(main)
