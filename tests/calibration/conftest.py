"""A small model with random weights, and films to calibrate it on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from answers import answer_logits, asked_of
from export_models import small_config, write_folder
from toy_plan import ToyPlan

from blip3v.calibration.collect import calibrate
from blip3v.calibration.data import ClipSet, film_clips
from blip3v.calibration.record import SamplingSettings
from blip3v.calibration.sensitivity import Scan
from blip3v.calibration.statistics import Calibration
from blip3v.export.source import ExportSource, folder_source
from blip3v.model import Blip3Video
from blip3v.model.weights import empty_model, fill

SETTINGS = SamplingSettings(num_rows=24, num_extreme=8)


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "model", small_config())


@pytest.fixture(scope="session")
def model(model_path: Path) -> ExportSource:
    return folder_source(model_path)


@pytest.fixture(scope="session")
def films(model: ExportSource) -> ClipSet:
    return film_clips(model, num_clips=3, prompts_per_clip=3)


@pytest.fixture(scope="session")
def calibration(model: ExportSource, films: ClipSet, tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    path = tmp_path_factory.mktemp("calibrations") / "calibration"
    return calibrate(path, model, model.hashed_provenance(), films, settings=SETTINGS)


@pytest.fixture(scope="session")
def whole_model(model: ExportSource) -> Blip3Video:
    """The whole model in memory; tests copy it before they change it."""
    whole = empty_model(model.config)
    fill(whole, model.weights)
    return whole


@pytest.fixture(scope="session")
def toy_plan(whole_model: Blip3Video, films: ClipSet) -> ToyPlan:
    """Nearest rounding, ranges from the inputs on ``films``."""
    return ToyPlan(whole_model, lambda: [answer_logits(whole_model, clip, asked) for clip, asked in asked_of(films)])


@pytest.fixture(scope="session")
def scan(
    whole_model: Blip3Video, toy_plan: ToyPlan, films: ClipSet, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Scan]:
    folder = tmp_path_factory.mktemp("scan")
    with Scan(whole_model.config, toy_plan, films.clips, folder=folder, group_size=32) as opened:
        yield opened
    assert not list(folder.iterdir())
