"""Hostile checkpoints: each loads or is refused in one line. ``ZOO_FUZZ_CASES`` says how many (CONTRIBUTING.md)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.fuzz.cases import Loader
from tests.fuzz.mutations import BLIND, STRUCTURED
from tests.fuzz.watch import watching

CASES = int(os.environ.get("ZOO_FUZZ_CASES", "2000"))


@pytest.fixture(scope="module")
def loader(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    return Loader(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.slow
@pytest.mark.timeout(0 if CASES > 2000 else 1200)
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


@pytest.mark.parametrize("change", {*STRUCTURED, *BLIND}, ids=lambda f: f.__name__)
def test_every_change_changes_something(change: object, loader: Loader) -> None:
    assert callable(change)
    changed = 0
    for seed in range(21):
        original = loader.cases[seed % len(loader.cases)][0]
        folder = original.copy()
        change(folder, Random(seed))
        changed += folder.files != original.files
    assert changed >= 10


FORBIDDEN = {
    "write": "open(outside, 'w')",
    "read": "open(outside)",
    "descriptor": "os.open(outside, os.O_RDONLY)",
    "remove": "os.remove(outside)",
    "socket": "socket.socket().connect(('127.0.0.1', 9))",
    "process": "subprocess.run(['true'])",
    "shell": "os.system('true')",
    "import": "import colorsys_of_somebody_else",
    "pickle": "pickle.loads(b'cos\\ngetpid\\n(tR.')",
    "code": "exec(compile('def forward(self, image):\\n    import os\\n', '<eval_with_key>.1', 'exec'))",
}


@pytest.mark.parametrize("deed", FORBIDDEN)
def test_the_watch_sees_what_it_forbids(deed: str, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("x")
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "inside").write_text("x")
    program = (
        "import contextlib, os, pickle, socket, subprocess, sys\nfrom pathlib import Path\n"
        "from tests.fuzz.watch import watching\n"
        f"case, outside = Path({str(tmp_path / 'case')!r}), {str(tmp_path / 'outside')!r}\n"
        "with watching(case) as seen:\n    open(case / 'inside').read()\n"
        "assert not seen, seen\n"
        f"with watching(case) as seen, contextlib.suppress(Exception):\n    {FORBIDDEN[deed]}\n"
        "assert seen\n"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_loading_reads_no_file_elsewhere(loader: Loader) -> None:
    """The watch on an honest checkpoint: what it allows is no more than loading needs."""
    folder, x, expected = loader.cases[-1]
    folder.write(loader.folder)
    with watching(loader.folder) as seen:
        found = loader.load(x, fake=True)
    assert seen == []
    assert found is not None and not isinstance(found, str) and bool((found == expected).all())
