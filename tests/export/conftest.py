"""Fixtures of the exporter's tests: one export a session, since each costs seconds."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest
from export_models import Exported, small_config, write_folder

from blip3v.export.source import random_weights
from blip3v.export.to_onnx import decoder_to_onnx, save_graph, video_encoder_to_onnx

# The settings of TextConfig that one decoder of the tests changes: few KV heads and a window shorter than the prompt.
WINDOWED = {"sliding_window": 8, "num_kv_heads": 2}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small folder of its own for a test that breaks it."""
    return write_folder(tmp_path / "model", small_config())


@pytest.fixture(scope="session")
def video_encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Exported]:
    """The exported video encoder of (encoder, precision)."""

    @functools.cache
    def export(encoder: str, precision: str) -> Exported:
        model = random_weights(small_config(encoder))
        path = tmp_path_factory.mktemp("graphs") / "video_encoder.onnx"
        save_graph(video_encoder_to_onnx(model, precision), path)  # type: ignore[arg-type]
        return Exported(path, model)

    return export


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    """The exported decoder of fp32, fp16 or windowed (fp32)."""

    @functools.cache
    def export(kind: str) -> Exported:
        config = small_config(**(WINDOWED if kind == "windowed" else {}))
        model = random_weights(config)
        path = tmp_path_factory.mktemp("graphs") / "decoder.onnx"
        save_graph(decoder_to_onnx(model.lang_model, config, "fp16" if kind == "fp16" else "fp32"), path)
        return Exported(path, model)

    return export
