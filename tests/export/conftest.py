"""Fixtures of the exporter's tests: one export a session, since each costs seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest
from export_models import WINDOWED, Exported, small_config, write_folder

from blip3v.bundle.precision import PRECISIONS
from blip3v.export import pipeline
from blip3v.export.to_onnx import decoder_to_onnx, save_graph, video_encoder_to_onnx
from blip3v.model.weights import random_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of its own for a test that breaks it."""
    return write_folder(tmp_path / "model", small_config())


@pytest.fixture(scope="session")
def video_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    """The exported video encoder of (encoder, precision)."""

    @functools.cache
    def export(encoder: str, precision: str) -> Exported:
        model = random_model(small_config(encoder))
        path = tmp_path_factory.mktemp("graphs") / "video_encoder.onnx"
        spec = PRECISIONS[precision].video_encoder
        save_graph(video_encoder_to_onnx(model.config, model.state_dict(), spec), path)
        return Exported(path, model)

    return export


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The exported decoder of fp32, fp16 or windowed (fp32)."""

    @functools.cache
    def export(kind: str) -> Exported:
        config = small_config(**(WINDOWED if kind == "windowed" else {}))
        model = random_model(config)
        path = tmp_path_factory.mktemp("graphs") / "decoder.onnx"
        spec = PRECISIONS["fp16" if kind == "fp16" else "fp32"].decoder
        save_graph(decoder_to_onnx(config, model.state_dict(), spec), path)
        return Exported(path, model)

    return export


@pytest.fixture
def ready_graphs(
    monkeypatch: pytest.MonkeyPatch,
    video_encoder: Callable[[str, str], Exported],
    decoder: Callable[[str], Exported],
) -> dict[str, ir.Model]:
    """Lets ``export_bundle`` take the session's fp32 graphs of ``small_config()``; a test may break them first."""
    graphs = {
        "video_encoder": ir.load(video_encoder("tokenlearner", "fp32").path),
        "decoder": ir.load(decoder("fp32").path),
    }
    monkeypatch.setattr(pipeline, "video_encoder_to_onnx", lambda *_: graphs["video_encoder"])
    monkeypatch.setattr(pipeline, "decoder_to_onnx", lambda *_: graphs["decoder"])
    return graphs
