"""A reader that leaves early."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.test_layout import ROOT
from zoo.console import CLOSED


@pytest.mark.parametrize("module", ["zoo.run", "zoo.list"])
def test_a_closed_pipe_ends_the_command_quietly(module: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as pipe:
        done = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (CLOSED, b"")
