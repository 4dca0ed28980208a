from __future__ import annotations

from pathlib import Path

import pytest
from bench_bundles import SmallBundles, film_tokenizer_json, small_bundles


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    return film_tokenizer_json()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> SmallBundles:
    return small_bundles(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="session")
def bundles(made: SmallBundles) -> list[Path]:
    return made.paths
