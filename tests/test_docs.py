"""The page about writing a recipe, done as it says, in a copy of the repository."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_layout import ROOT
from zoo.results import read_records

PAGE = ROOT / "docs" / "write_a_recipe.md"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("zoo", "recipes", "evaluate"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "results").mkdir()
    return tmp_path


def run(copy: Path, line: str) -> str:
    words = [sys.executable, *line.split()[1:]]
    environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "2"}
    done = subprocess.run(words, cwd=copy, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (line, done.stderr)
    return done.stdout


@pytest.mark.slow
def test_the_page_leads_to_a_checkpoint_in_the_table(copy: Path) -> None:
    blocks = re.findall(r"(?:^`([\w/.]+)`:\n\n)?^```(\w+)\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    hashes: dict[str, str] = {}
    commands = 0
    for path, kind, text in blocks:
        if path:
            for word, value in hashes.items():
                text = text.replace(f'"{word}"', f'"{value}"')
            (copy / path).write_text(text)
            continue
        assert kind == "sh", "every other block is a file"
        for line in text.splitlines():
            told = run(copy, line)
            commands += 1
            found = dict(re.findall(r"^(sha256|tensors_sha256) (\w{64})$", told, re.M))
            hashes |= {key.upper(): value for key, value in found.items()}
    assert commands == 5 and len(hashes) == 2
    records = read_records(copy / "results")
    assert [(r.recipe, r.bits) for r in records] == [("mynet_qat_w4a4", "W4A4"), ("mynet_w4a4", "W4A4")]
    assert all(r.top1 > 70 and r.agreement == 100 for r in records), [r.top1 for r in records]
    assert "`mynet_qat_w4a4`" in (copy / "README.md").read_text()
    code = "import zoo; print(zoo.load('mynet_qat_w4a4', integer=True).labels[0])"
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
    )
    assert loaded.returncode == 0 and loaded.stdout.strip(), loaded.stderr
