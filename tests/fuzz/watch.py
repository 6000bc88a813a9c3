"""An audit hook that notes what a loader must never do: foreign imports, files elsewhere, sockets, processes."""

from __future__ import annotations

import contextlib
import os
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Each begins an event's name: https://docs.python.org/3/library/audit_events.html
_NEVER = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.remove", "os.rename",
    "os.mkdir", "os.rmdir", "os.chmod", "os.chown", "os.link", "os.symlink", "os.truncate", "os.utime", "os.kill",
    "os.putenv", "shutil.", "pickle.find_class", "urllib.", "http.", "ftplib.", "smtplib.", "tempfile.",
    "ctypes.dlopen", "webbrowser.", "sqlite3.", "glob.", "pty.", "signal.",
)  # fmt: skip
# torch.fx writes the network's forward as Python: every line may only call our own module of that name.
_GENERATED = re.compile(
    r"\s*(?:|torch\.fx\._symbolic_trace\.wrap\(.*\)|from __future__ import annotations|def forward\(self, image\):"
    r'|(?:\w+ = )?(?:self|getattr\()[\w."(), ]*(?:;\s+[\w, =]+ = None)?(?:\s*#.*)?|return \w+)\s*'
)
_INSTALLED = (sys.prefix, sys.base_prefix, sysconfig.get_paths()["stdlib"], Path(__file__).parents[2] / "zoo")
_SAFE_ROOTS = (*(f"{Path(p).resolve()}{os.sep}" for p in _INSTALLED), "/proc/", "/sys/", "/dev/null")

_state: dict[str, Any] = {"folder": None, "found": [], "installed": False}


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    folder = _state["folder"]
    if folder is None:
        return
    if event == "open":
        path, mode, flags = arguments
        if not isinstance(path, (str, bytes, os.PathLike)):
            return  # a file descriptor: whoever opened it was seen
        name = os.path.realpath(os.fsdecode(path))
        writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (
            isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        )
        if writes or not name.startswith((folder + os.sep, *_SAFE_ROOTS)):
            _state["found"].append(f"open {name} {mode}")
    elif event == "import":
        top = arguments[0].partition(".")[0]
        if top not in _state["modules"] and top not in sys.stdlib_module_names:
            _state["found"].append(f"import {arguments[0]}")
    elif event == "compile":
        source, name = arguments
        text = source.decode() if isinstance(source, bytes) else source
        if isinstance(text, str) and str(name).startswith("<eval_with_key>"):
            odd = [line for line in text.splitlines() if not _GENERATED.fullmatch(line)]
            _state["found"].extend(f"compile {line}" for line in odd)
    elif event.startswith(_NEVER):
        _state["found"].append(f"{event} {arguments!r:.200}")


@contextlib.contextmanager
def watching(folder: Path) -> Iterator[list[str]]:
    """Give the list of what was done beyond reading files of ``folder`` and of the Python installation."""
    if not _state["installed"]:
        sys.addaudithook(_hook)
        _state["installed"] = True
    found: list[str] = []
    _state["found"] = found
    _state["modules"] = {name.partition(".")[0] for name in sys.modules}
    _state["folder"] = os.path.realpath(folder)
    try:
        yield found
    finally:
        _state["folder"] = None
