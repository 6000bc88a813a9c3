"""Machines without a compiler, and compilers that fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo.errors import RecipeError
from zoo.native import library


@pytest.mark.parametrize("wanted", ["no-such-compiler", "no-such-compiler --flag"])
def test_a_compiler_that_is_not_there_is_named(wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", wanted)
    with pytest.raises(RecipeError, match=rf"CXX={wanted}.*install one or leave native out"):
        library.compile_kernels()


def test_without_any_compiler_those_looked_for_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(library, "COMPILERS", ("first-compiler", "second-compiler"))
    with pytest.raises(RecipeError, match="first-compiler, second-compiler"):
        library.compile_kernels()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo kernels.cpp:1: error: no such thing >&2; echo 1 error generated. >&2; exit 1", "error: no such thing;"),
        ("exit 1", "failed: no message;"),
        ('while [ "$1" != -o ]; do shift; done; echo no library > "$2"', "kernels.so"),
        ("while :; do sleep 1; done", "timed out after"),
    ],
    ids=["error", "silent", "cannot be loaded", "hangs"],
)
def test_what_a_compiler_failed_of_is_said(
    script: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", f"{compiler} --first")
    monkeypatch.setattr(library, "_SECONDS", 0.2 if "sleep" in script else 60.0)
    with pytest.raises(RecipeError, match=f"compiler --first failed: .*{said}|{said}"):
        library.compile_kernels((("-O1",), ()))
