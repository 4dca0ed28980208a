"""What engines may be asked for, checked without TensorRT: limits of the bundle, and options that a library lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config
from toy_tensorrt import write_trt_bundle

from blip3v.bundle.engines import EngineLimits
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.errors import UsageError
from blip3v.export.engine_request import EngineRequest, chosen_library, engine_limits


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The toy: 4 frames, 8 video tokens, a context of 256."""
    return open_bundle(write_trt_bundle(tmp_path_factory.mktemp("bundles") / "toy"))


def test_the_defaults_are_the_bundles_own(bundle: Bundle) -> None:
    limits = EngineLimits(max_batch_size=1, max_frames=4, max_seq_len=256, prefill_chunk=256)
    assert engine_limits(bundle, EngineRequest()) == limits


def test_what_is_asked_for_is_taken(bundle: Bundle) -> None:
    asked: Any = {"max_batch_size": 3, "max_frames": 4, "max_seq_len": 10, "prefill_chunk": 7}
    assert engine_limits(bundle, EngineRequest(**asked)) == EngineLimits(**asked)
    assert engine_limits(bundle, EngineRequest(max_seq_len=20)).prefill_chunk == 20


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        pytest.param({"max_batch_size": 0}, "max_batch_size is 0; at least 1", id="no batch"),
        pytest.param({"max_seq_len": 257}, "max_seq_len is 257; the model's context has 256 tokens", id="too long"),
        pytest.param({"max_seq_len": 9}, "8 video tokens, a prompt and an answer need at least 10", id="too short"),
        pytest.param({"max_seq_len": 64, "prefill_chunk": 65}, "at most max_seq_len, 64, is allowed", id="chunk"),
        pytest.param({"max_frames": 9}, "was exported for 4 frames, no others", id="more frames than its graph has"),
        pytest.param({"max_frames": 3}, "max_frames is 3; a clip has 4 frames", id="fewer frames than a clip has"),
    ],
)
def test_limits_that_the_bundle_does_not_have(bundle: Bundle, asked: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine_limits(bundle, EngineRequest(**asked))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        pytest.param({"optimization_level": 6}, "optimization_level is 6; 0 to 5 are allowed", id="level"),
        pytest.param({"workspace_bytes": 0}, "workspace_bytes is 0", id="workspace"),
        pytest.param({"compute_capability": ("86",)}, "'86'; numbers such as 8.6 or 12.0 are expected", id="86"),
        pytest.param({"compute_capability": ("8.6", "8.6")}, "each once is enough", id="twice"),
    ],
)
def test_values_that_no_library_takes(values: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineRequest(**values)


def test_the_target_decides_which_library_builds(bundle: Bundle, tmp_path: Path) -> None:
    assert chosen_library(bundle, EngineRequest()) == "tensorrt_rtx"
    assert chosen_library(bundle, EngineRequest(library="tensorrt")) == "tensorrt"
    other = open_bundle(write_trt_bundle(tmp_path / "toy", target="tensorrt"))
    assert chosen_library(other, EngineRequest()) == "tensorrt"
    assert chosen_library(other, EngineRequest(library="tensorrt_rtx")) == "tensorrt_rtx"


def test_graphs_for_onnx_runtime_are_refused_with_the_line_that_exports_others(tmp_path: Path) -> None:
    config = toy_config()
    bundle = open_bundle(write_bundle(tmp_path / "toy", config, Weights.random(config.text)))
    with pytest.raises(UsageError) as caught:
        chosen_library(bundle, EngineRequest())
    assert "was exported for onnxruntime" in str(caught.value)
    assert "`blip3v export` with `encoder='mean'` `precision='fp32'` `target='tensorrt-rtx'`" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        pytest.param(
            {"library": "tensorrt", "compute_capability": ("8.6",)},
            "leave `compute_capability` out, or build with `library='tensorrt_rtx'`",
            id="TensorRT builds for its own GPU",
        ),
        pytest.param({"version_compatible": True}, "leave `version_compatible` out", id="RTX has one version"),
        pytest.param(
            {"hardware_compatibility": "ampere_plus"},
            "list the GPUs instead: `compute_capability='8.6,8.9'`",
            id="RTX lists its GPUs",
        ),
    ],
)
def test_an_option_without_effect_is_refused(bundle: Bundle, values: Any, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        chosen_library(bundle, EngineRequest(**values))
    assert caught.value.remedy == remedy
