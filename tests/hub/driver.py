"""Run our command lines in forked children of a process that has torch loaded: a scenario takes no five seconds.

Reads a JSON request a line: ``{module, arguments, environment, kill, file_limit}``; answers ``{rc, out, err}``. The
hub's client reads its environment when it is imported, so the child reads the client's constants anew.
``kill`` is the moment of a kill -9, counted as ``watch`` does.
Waiting between the client's retries is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, constants

import zoo
import zoo.hub.publish
import zoo.loading
import zoo.pipeline
import zoo.run

MODULES = ("zoo.publish", "zoo.pull", "zoo.run", "tests.hub.load")


def watch(moment: int, files: bool) -> None:
    """End the process with a kill at a moment: before a call that sends a request or renames a file, and after it too
    where it changes something; with ``files`` at every copy and flush of a file too. A question for a file's head
    leaves nothing behind on either side, so what follows it is moment enough."""  # fmt: skip
    import httpx2

    passed = 0

    def tick() -> None:
        nonlocal passed
        if passed == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        passed += 1

    def replace(owner: Any, name: str) -> None:
        real: Callable[..., Any] = getattr(owner, name)

        def call(*args: Any, **more: Any) -> Any:
            sent = more.get("request") or args[-1]
            if getattr(sent, "method", "") == "HEAD":
                return real(*args, **more)
            tick()
            result = real(*args, **more)
            if getattr(sent, "method", "") not in ("GET", "HEAD"):
                tick()
            return result

        setattr(owner, name, call)

    watched: list[tuple[Any, str]] = [(httpx2.Client, "send"), (os, "replace"), (os, "rename")]
    for owner, name in [*watched, *([(shutil, "copyfile"), (os, "fsync")] if files else [])]:
        replace(owner, name)


def child(request: dict[str, Any]) -> int:
    os.environ.update(request["environment"])
    importlib.reload(constants)
    time.sleep = lambda _: None
    if request.get("file_limit"):
        # a write beyond it fails as on a full disk; standard output and error are files too
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["file_limit"],) * 2)
    if request.get("kill") is not None:
        watch(request["kill"], request.get("files", False))
    assert request["module"] in MODULES
    main = importlib.import_module(request["module"]).main
    return int(main(request["arguments"]))


def serve(request: dict[str, Any]) -> dict[str, Any]:
    """Run one request in a child and say how it ended."""
    with tempfile.TemporaryDirectory() as scratch:
        out, err = Path(scratch, "out"), Path(scratch, "err")
        pid = os.fork()
        if pid == 0:
            code = 70
            try:
                for path, number in ((out, 1), (err, 2)):
                    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
                code = child(request)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        status = os.waitpid(pid, 0)[1]
        return {"rc": os.waitstatus_to_exitcode(status), "out": out.read_text(), "err": err.read_text()}


if __name__ == "__main__":
    # what is loaded late is loaded here; one thread, as more do not survive a fork
    torch.set_num_threads(1)
    assert HfApi().endpoint and zoo.load("resnet8_fashion_w4a8", integer=True).labels
    # seconds in every child that signs; without the extra the tests that do are skipped
    if importlib.util.find_spec("model_signing"):
        importlib.import_module("model_signing.signing")
        importlib.import_module("model_signing.verifying")
    for line in sys.stdin:
        print(json.dumps(serve(json.loads(line))), flush=True)
