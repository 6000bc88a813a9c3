"""Hostile checkpoints: each loads or is refused in one line. ``ZOO_FUZZ_CASES`` says how many (CONTRIBUTING.md)."""

from __future__ import annotations

import os
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.cases import Loader

CASES = int(os.environ.get("ZOO_FUZZ_CASES", "2000"))


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    return Loader(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.timeout(0 if CASES > 2000 else 600)
def test_a_changed_checkpoint_loads_or_is_refused(loader: Loader) -> None:
    @settings(
        max_examples=CASES, deadline=None, database=None, derandomize=CASES == 2000,
        suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def check(r: Random) -> None:
        loader.run(r)

    check()
    print(dict(sorted(loader.outcomes.items())))
    # a fuzzer that never passes the first check, or is never refused, tests nothing
    assert loader.outcomes["loaded"] > CASES // 20
    assert loader.outcomes["refused"] > CASES // 20
