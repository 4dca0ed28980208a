"""Puts this folder on the import path: tests of several parts use ``released_files.py``."""

from __future__ import annotations

import os

import pytest

# Small tensors: threads that wait for each other on few cores make the suite several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seed", type=int, help="run only this case of the tests in tests/fuzz")
