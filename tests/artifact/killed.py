"""Save over a checkpoint and be killed, once at every system call that changes the disk. Run as a module.

Arguments: the old checkpoint, the new one, the place to save to, ``swap`` or ``rename`` (as where no system call swaps
two folders). Prints JSON: for each moment what then lies under the name, ``old``, ``new`` or ``none``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import zoo
from zoo.artifact import files, placing
from zoo.artifact.checkpoint import Network
from zoo.errors import ArtifactError

WATCHED: tuple[tuple[Any, str], ...] = (
    (os, "mkdir"), (os, "replace"), (os, "fsync"), (os, "rmdir"), (os, "unlink"), (placing, "exchange"),
    (Path, "write_bytes"),
)  # fmt: skip


def die(moment: int) -> None:
    """Patch the calls so that the process ends before call ``moment / 2``, or after it where ``moment`` is odd."""
    calls = 0

    def watch(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            nonlocal calls
            mine, calls = calls, calls + 1
            if mine == moment // 2 and moment % 2 == 0:
                if name == "write_bytes":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return real(*args, **more)
            finally:
                if mine == moment // 2:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, call)

    for owner, name in WATCHED:
        watch(owner, name)


def killed(net: Network, target: Path, moment: int) -> bool:
    """Save in a child process and return whether it was killed."""
    child = os.fork()
    if child == 0:
        die(moment)
        net.save(target)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WIFSIGNALED(status)


def content(folder: Path) -> dict[str, bytes]:
    """Return every file's bytes."""
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def main(old: Path, new: Path, target: Path, way: str) -> list[str]:
    """Return what lies under the name after each moment."""
    torch.set_num_threads(1)
    if way == "rename":
        placing.exchange = lambda a, b: False
    nets = {"old": zoo.load(old, integer=True), "new": zoo.load(new, integer=True)}
    known = {"old": content(old), "new": content(new)}
    found = []
    nets["old"].save(target)
    for moment in range(200):
        was_killed = killed(nets["new"], target, moment)
        if not target.exists():
            found.append("none")
            full(target)
            assert content(target) == known["old"], "a save that failed must bring the old checkpoint back"
        else:
            found.append(next(name for name, files in known.items() if content(target) == files))
        nets["old"].save(target)
        assert content(target) == known["old"]
        assert [p.name for p in target.parent.iterdir()] == [target.name], "the next save must clean up"
        if not was_killed:
            return found
    raise AssertionError("saving never came to its end")


def full(target: Path) -> None:
    """Save on a full disk."""

    def fill(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    try:
        files.write_folder(target, fill)
    except ArtifactError:
        return
    raise AssertionError("the error was lost")


if __name__ == "__main__":
    shutil.rmtree(sys.argv[3], ignore_errors=True)
    print(json.dumps(main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
