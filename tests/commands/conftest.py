"""The toy bundle on disk, for the verbs that answer."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config


@pytest.fixture(scope="session")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    return write_bundle(tmp_path_factory.mktemp("bundles") / "blip3v-toy", config, Weights.random(config.text))
