"""Fuzz guided by coverage: ``python -m tests.fuzz.atheris_loader [-max_total_time=600]``; needs ``atheris``."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from random import Random

import atheris  # type: ignore[import-not-found,unused-ignore]
from hypothesis import given, settings
from hypothesis import strategies as st

with atheris.instrument_imports(include=["zoo.artifact", "zoo.integer", "zoo.preprocess"]):
    from tests.fuzz.cases import Loader


def main() -> None:
    """Fuzz; libFuzzer's own options are taken from the command line."""
    loader = Loader(Path(tempfile.mkdtemp(prefix="fuzz-")))

    @settings(database=None, deadline=None)
    @given(st.randoms(use_true_random=False))
    def check(r: Random) -> None:
        loader.run(r)

    atheris.Setup(sys.argv, check.hypothesis.fuzz_one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
