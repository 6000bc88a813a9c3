"""What only a machine with a C++ compiler can test."""

from __future__ import annotations

import pytest

from zoo.native.library import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
