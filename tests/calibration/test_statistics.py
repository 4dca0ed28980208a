"""Calibration folders: written and read back, damaged, of another model."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from export_models import small_config, write_folder
from safetensors.torch import load_file, save_file

from blip3v.bundle.scan import hash_file
from blip3v.calibration.collect import calibrate
from blip3v.calibration.data import ClipSet
from blip3v.calibration.layers import HEAD, linear_layers
from blip3v.calibration.record import DataRecord, SamplingSettings, check_target
from blip3v.calibration.statistics import Calibration, LayerStatistics, cache_names, new_calibration
from blip3v.errors import ArtifactError, CalibrationError, UsageError
from blip3v.export.source import ExportSource, folder_source, random_source

LAYER = "lang_model.model.layers.1.mlp.down_proj"


@pytest.fixture
def folder(calibration: Calibration, tmp_path: Path) -> Path:
    """A calibration that a test may break."""
    return Path(shutil.copytree(calibration.path, tmp_path / "calibration"))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "calibration.json"
    values = json.loads(path.read_text("utf-8"))
    change(values)
    path.write_text(json.dumps(values), "utf-8")


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], *, rehash: bool = True) -> None:
    path = folder / "statistics.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)
    if rehash:
        edit(folder, lambda values: values.update(sha256=hash_file(path)))


def test_what_was_written_is_read_back(calibration: Calibration, model: ExportSource) -> None:
    config = model.config
    again = Calibration.load(calibration.path)
    assert again.record == calibration.record
    assert sorted(os.listdir(calibration.path)) == ["calibration.json", "statistics.safetensors"]
    stored = load_file(calibration.path / "statistics.safetensors")  # the safetensors library reads it too
    assert len(stored) == 2 * len(linear_layers(config)) + len(cache_names(config.text))
    for name, layer in linear_layers(config).items():
        statistics = again.layer(name)
        assert statistics.absmax_K.shape == (layer.num_inputs,)
        assert statistics.absmax_K.dtype == statistics.rows_NK.dtype == torch.float32
        assert torch.equal(statistics.absmax_K, stored[f"{name}.absmax"])
        assert torch.equal(statistics.rows_NK, stored[f"{name}.rows"])
        assert torch.equal(again.absmax(name), statistics.absmax_K)
        assert bool((statistics.rows_NK.abs() <= statistics.absmax_K).all())
    for name in cache_names(config.text):
        assert again.absmax(name).shape == (config.text.num_kv_heads * config.text.head_dim,)


def test_a_calibration_is_of_its_model_and_no_other(
    calibration: Calibration, model: ExportSource, tmp_path: Path
) -> None:
    calibration.check_model(model.hashed_provenance(), model.config)
    moved = dataclasses.replace(model.hashed_provenance(), name="moved")
    calibration.check_model(moved, model.config)  # where a model is does not matter
    other = folder_source(write_folder(tmp_path / "other", small_config(), seed=1))
    with pytest.raises(CalibrationError, match=r"another model, model, not of this one, other: .*model\.safetensors"):
        calibration.check_model(other.hashed_provenance(), other.config)
    with pytest.raises(CalibrationError, match=r"of this one, model: they differ in num_frames \(8 and 5\); calibrate"):
        calibration.check_model(model.hashed_provenance(), folder_source(tmp_path / "other", num_frames=5).config)
    generated = random_source(small_config())
    with pytest.raises(CalibrationError, match="whether the weights are trained"):
        calibration.check_model(generated.provenance, generated.config)


def test_random_weights_are_told_apart_by_their_config(films: ClipSet, tmp_path: Path) -> None:
    generated = random_source(small_config())
    made = calibrate(
        tmp_path / "new", generated, generated.provenance, films, settings=SamplingSettings(num_rows=4, num_extreme=1)
    )
    made.check_model(generated.provenance, generated.config)
    other = small_config(intermediate_size=256)
    with pytest.raises(CalibrationError, match=r"text.intermediate_size \(384 and 256\)"):
        made.check_model(random_source(other).provenance, other)


def test_what_a_model_was_calibrated_on_is_not_for_its_evaluation(calibration: Calibration) -> None:
    films = DataRecord(num_clips=1, num_prompts=1, split="train", seeds=(5, 1_000_001))
    with pytest.raises(CalibrationError, match="film 1000001 of the split train, which is also in the evaluation"):
        calibration.check_held_apart(films)
    calibration.check_held_apart(dataclasses.replace(films, split="test"))
    record = DataRecord(num_clips=1, num_prompts=1, sha256={"a.mp4": "11", "questions.json": "22"})
    own = Calibration(calibration.path, dataclasses.replace(calibration.record, data=record))
    with pytest.raises(CalibrationError, match=r"b\.mp4"):
        own.check_held_apart(dataclasses.replace(record, sha256={"b.mp4": "11"}))
    own.check_held_apart(dataclasses.replace(record, sha256={"a.mp4": "33", "questions.json": "22"}))


def test_an_unknown_layer_is_named(calibration: Calibration) -> None:
    for ask in (calibration.layer, calibration.absmax):
        with pytest.raises(CalibrationError, match=r"no layer 'lang_model\.model\.layers\.9\.mlp\.down_proj'"):
            ask("lang_model.model.layers.9.mlp.down_proj")
    with pytest.raises(CalibrationError, match="no layer"):
        calibration.layer(cache_names(calibration.record.config.text)[0])


BROKEN_JSON: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "unknown key": (lambda values: values.update(extra=1), "unknown key 'extra'"),
    "missing key": (lambda values: values.pop("data"), "lacks the key 'data'"),
    "newer schema": (lambda values: values.update(schema_version=2), "schema_version 2; this blip3v reads 1"),
    "wrong type": (lambda values: values["data"].update(num_clips="x"), "num_clips is 'x'"),
    "NaN": (lambda values: values.update(created_by={"x": float("nan")}), "NaN is not a JSON number"),
    "infinity": (lambda values: values.update(created_by={"x": float("inf")}), "Infinity is not a JSON number"),
    "missing layer": (lambda values: values["layers"].pop(LAYER), f"missing {LAYER}"),
    "unknown layer": (lambda values: values["layers"].update(x=values["layers"][LAYER]), "unknown x"),
    "more extreme rows than rows": (
        lambda values: values["layers"][LAYER].update(num_extreme=99),
        "99 of them extreme",
    ),
    "more rows than in the file": (lambda values: values["layers"][LAYER].update(num_rows=23), "has shape"),
    "another config": (lambda values: values["config"]["text"].update(intermediate_size=128), "has shape"),
    "impossible settings": (lambda values: values["settings"].update(num_rows=0), "0 rows"),
}


@pytest.mark.parametrize("case", BROKEN_JSON)
def test_a_record_that_is_not_right_is_refused(case: str, folder: Path) -> None:
    change, words = BROKEN_JSON[case]
    edit(folder, change)
    with pytest.raises(CalibrationError, match=words):
        Calibration.load(folder)


BROKEN_TENSORS: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "missing": (lambda tensors: tensors.pop(f"{HEAD}.absmax"), f"missing {HEAD}.absmax"),
    "unknown": (lambda tensors: tensors.update(x=torch.zeros(1)), "unknown x"),
    "another shape": (lambda tensors: tensors.update({f"{LAYER}.absmax": torch.zeros(3)}), "expected"),
    "another dtype": (
        lambda tensors: tensors.update({f"{LAYER}.rows": tensors[f"{LAYER}.rows"].half()}),
        "is F16, expected F32",
    ),
    "NaN": (lambda tensors: tensors[f"{LAYER}.absmax"].fill_(torch.nan), "contains NaN, infinity or a negative"),
    "negative": (lambda tensors: tensors[f"{LAYER}.absmax"].neg_(), "contains NaN, infinity or a negative"),
}


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_statistics_that_are_not_right_are_refused(case: str, folder: Path) -> None:
    change, words = BROKEN_TENSORS[case]
    edit_tensors(folder, change)
    with pytest.raises(CalibrationError, match=words):
        Calibration.load(folder)


def test_infinite_rows_are_found_when_they_are_read(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.rows"][3].fill_(torch.inf))
    made = Calibration.load(folder)
    with pytest.raises(CalibrationError, match="rows contains NaN or infinity"):
        made.layer(LAYER)


def test_statistics_that_have_changed_or_are_cut_off_are_refused(folder: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors[f"{LAYER}.absmax"].mul_(2), rehash=False)
    with pytest.raises(CalibrationError, match="has changed since it was written"):
        Calibration.load(folder)
    path = folder / "statistics.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CalibrationError, match="not a complete safetensors file"):
        Calibration.load(folder)


@pytest.mark.parametrize("name", ["calibration.json", "statistics.safetensors"])
def test_a_folder_without_its_files_is_not_a_calibration(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).unlink()
    with pytest.raises(CalibrationError, match=f"has no {name}"):
        Calibration.load(folder)
    with pytest.raises(CalibrationError, match=r"nowhere has no calibration\.json"):
        Calibration.load(tmp_path / "nowhere")


def test_only_a_calibration_is_replaced_and_only_when_asked(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        check_target(folder, force=False)
    check_target(folder, force=True)
    (folder / "sensitivity.png").touch()
    check_target(folder, force=True)
    (folder / "notes.txt").touch()
    with pytest.raises(UsageError, match=r"contains notes\.txt, so it is not a calibration"):
        check_target(folder, force=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"has no calibration\.json, so"):
        check_target(tmp_path / "empty", force=True)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a calibration"):
        check_target(tmp_path / "file", force=True)
    with pytest.raises(ArtifactError, match="a part of the path is a file"):
        check_target(tmp_path / "file" / "new", force=False)


def test_an_interrupted_calibration_leaves_the_old_one(folder: Path, model: ExportSource) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(KeyboardInterrupt):
        write_half(folder, model)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def write_half(folder: Path, model: ExportSource) -> None:
    settings = SamplingSettings(num_rows=4, num_extreme=0)
    data = DataRecord(num_clips=1, num_prompts=1)
    with new_calibration(
        folder, source=model.provenance, config=model.config, data=data, settings=settings, force=True
    ) as writer:
        writer.add(LAYER, LayerStatistics(torch.ones(384), torch.ones(2, 384), 2, 0))
        raise KeyboardInterrupt
