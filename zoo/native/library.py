"""Compile ``kernels.cpp`` with the compiler of this machine."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from zoo.errors import RecipeError

SOURCE = Path(__file__).with_name("kernels.cpp")
COMPILERS = ("g++", "clang++", "c++")

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


def compile_kernels(faster: tuple[tuple[str, ...], ...] = _FASTER) -> ctypes.CDLL:
    """Return the compiled and loaded library; about two seconds.

    ``CXX`` names another compiler than the first found of ``COMPILERS``. Raises RecipeError without one, and with its
    last words where it fails.
    """
    wanted = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, (wanted,) if wanted else COMPILERS)), None)
    if found is None:
        sought = f"CXX={wanted}" if wanted else ", ".join(COMPILERS)
        raise RecipeError(f"train.native: no C++ compiler ({sought}) is installed; install one or leave native out")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        target = Path(folder, "kernels.so")
        for flags in faster:
            command = [found, *_ALWAYS, *flags, str(SOURCE), "-o", str(target)]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode == 0:
                try:
                    return ctypes.CDLL(str(target))
                except OSError as e:
                    raise RecipeError(f"train.native: what {found} compiled cannot be loaded: {e}") from e
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise RecipeError(f"train.native: {found} failed: {last}")
