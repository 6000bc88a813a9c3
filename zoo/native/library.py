"""Compile ``kernels.cpp`` with the compiler of this machine."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from zoo.errors import RecipeError

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")

_SECONDS = 300.0

# no contraction: a compiler that joins a product and a sum rounds once where another rounds twice
_ALWAYS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
# the first that this compiler knows; what they change is the time, not the result
_FASTER = (
    ("-march=native", "-fopenmp"),
    ("-march=native", "-fopenmp-simd"),
    ("-mcpu=native", "-fopenmp-simd"),
    ("-fopenmp-simd",),
    (),
)


def compiler() -> list[str] | None:
    """Return the command of the C++ compiler, ``CXX`` or the first found of ``COMPILERS``; None without one."""
    for command in [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [[name] for name in COMPILERS]:
        if command and shutil.which(command[0]):
            return command
    return None


def compile_kernels(faster: tuple[tuple[str, ...], ...] = _FASTER) -> ctypes.CDLL:
    """Return the compiled and loaded library; a few seconds.

    Raises RecipeError without a compiler, and with its error where it fails.
    """
    found = compiler()
    if found is None:
        sought = f"CXX={os.environ['CXX']}" if os.environ.get("CXX") else ", ".join(COMPILERS)
        raise RecipeError(f"train.native: no C++ compiler ({sought}) is installed; install one or leave native out")
    reason = "no message"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target = Path(folder, "kernels.so")
        for flags in faster:
            if "-fopenmp" in flags and "clang" in _run([*found, "--version"]).stdout:
                continue  # its OpenMP is another than PyTorch's, and a process may not have both
            done = _run([*found, *_ALWAYS, *flags, str(SOURCE), "-o", str(target)])
            if done.returncode == 0:
                try:
                    return ctypes.CDLL(str(target))
                except OSError as e:
                    reason = str(e)
            lines = done.stderr.strip().splitlines()
            reason = next((line for line in lines if "error" in line), lines[-1] if lines else reason)
    raise RecipeError(f"train.native: {shlex.join(found)} failed: {reason}; install another (CXX) or leave native out")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as e:
        return subprocess.CompletedProcess(command, 1, "", f"error: {e}")
