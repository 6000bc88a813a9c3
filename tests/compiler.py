"""What only a machine with a C++ compiler can test."""

from __future__ import annotations

import os
import shutil

import pytest

from zoo.native.library import COMPILERS

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, [os.environ["CXX"]] if os.environ.get("CXX") else COMPILERS)),
    reason="needs a C++ compiler",
)
