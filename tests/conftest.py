"""Puts this folder on the import path: tests of several parts use ``released_files.py``.

Property tests draw the same cases each time; ``pytest --hypothesis-profile=default`` draws new ones.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

# Small tensors: threads that wait for each other on few cores make the suite several times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.load_profile("ci")

_LONG = ("training/", "test_readme.py", "export/", "bench/", "calibration/", "commands/", "scripts/")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seed", type=int, help="run only this case of the tests in tests/fuzz")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a process that begins one last keeps all others waiting (see ``--no-loadscope-reorder``)."""
    items.sort(key=lambda item: not any(part in item.nodeid for part in _LONG))
