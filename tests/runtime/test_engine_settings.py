"""Settings of engines that tuning may choose: what they change, what they leave, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_graphs import Weights, toy_config, write_decoder, write_video_encoder
from toy_parts import BACKENDS, graph_file

from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.bundle.precision import PRECISIONS
from blip3v.errors import UsageError
from blip3v.runtime.backends import GRAPHS, Backend, get_backend, onnxruntime, settings_to_try, with_settings
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.onnxruntime_graph import session_options


def logits(backend: Backend, path: Path) -> np.ndarray:
    config = toy_config()
    weights = Weights.random(config.text)
    if not path.exists():
        write_decoder(path, config, weights, "float32")
    graph = graph_file(path, decoder_io(config))
    decoder = backend.open_decoder(graph, config.text, threads=1)
    session = decoder.session(1, 8)
    prompt_TD = np.random.default_rng(3).normal(size=(5, config.text.hidden_size)).astype(np.float32)
    first = session.prefill([prompt_TD], Deadline())
    return np.concatenate([first, session.step(prompt_TD[:1])])


def test_threads_that_do_not_spin_compute_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    make = session_options

    def spied(threads: int | None) -> Any:
        opened.append(make(threads))
        return opened[-1]

    monkeypatch.setattr(onnxruntime, "session_options", spied)
    plain = get_backend("onnxruntime")
    quiet = with_settings(plain, {"spinning": False})
    assert np.array_equal(logits(plain, tmp_path / "decoder.onnx"), logits(quiet, tmp_path / "decoder.onnx"))
    assert opened[1].get_session_config_entry("session.intra_op.allow_spinning") == "0"
    with pytest.raises(RuntimeError, match="does not have configuration with key"):
        opened[0].get_session_config_entry("session.intra_op.allow_spinning")


def test_bf16_is_near_fp32_and_named(tmp_path: Path) -> None:
    precision = PRECISIONS["fp32"].decoder
    plain = get_backend("openvino")
    if {"inference_precision": "bf16"} not in settings_to_try(plain, "decoder", precision):
        pytest.skip("this processor does not multiply in bf16")
    narrow = with_settings(plain, {"inference_precision": "bf16"})
    exact, near = logits(plain, tmp_path / "decoder.onnx"), logits(narrow, tmp_path / "decoder.onnx")
    error = np.abs(exact - near).max() / np.abs(exact).max()
    assert 0 < error < 0.05
    assert (plain.execution(precision).dtype, narrow.execution(precision).dtype) == ("fp32", "bf16")
    assert narrow.execution(PRECISIONS["int8"].decoder).dtype == "int8"


def test_smaller_groups_of_rounded_inputs_fit_more_layers() -> None:
    precision = PRECISIONS["int4"].decoder
    small = with_settings(get_backend("openvino"), {"rounding_group": 32})
    # A layer of 96 inputs has groups of 32, which hold no block of 128.
    layer = (precision, "int4-block", 32, 96)
    assert get_backend("openvino").layer_dtype(*layer) == "fp32"
    assert small.layer_dtype(*layer) == "int8 by int4"


def test_openvino_is_given_the_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from blip3v.runtime.backends.openvino import sessions

    config, path = toy_config(), tmp_path / "video_encoder.onnx"
    write_video_encoder(path, config, "float32", 1)
    given: list[Any] = []
    make = sessions.open_core

    def spied(*arguments: Any) -> Any:
        given.append(arguments[3])
        return make(*arguments)

    monkeypatch.setattr(sessions, "open_core", spied)
    chosen = with_settings(get_backend("openvino"), {"inference_precision": "bf16", "rounding_group": 32})
    chosen.open_video_encoder(graph_file(path, video_encoder_io(config)), threads=1).close()
    get_backend("openvino").open_video_encoder(graph_file(path, video_encoder_io(config)), threads=1).close()
    assert given == [{"INFERENCE_PRECISION_HINT": "bf16", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32}, {}]


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_every_setting_to_try_can_be_set(name: str, graph: Any) -> None:
    backend = get_backend(name)
    for named in PRECISIONS.values():
        precision = getattr(named, graph)
        for settings in settings_to_try(backend, graph, precision):
            assert with_settings(backend, settings).name == name


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("onnxruntime", {"spinning": 1}, "onnxruntime has no setting spinning=1; allowed: spinning, true or false"),
        ("onnxruntime", {"speed": True}, "onnxruntime has no setting speed=True"),
        ("openvino", {"inference_precision": "f8"}, "inference_precision is 'f8'; allowed: f32, bf16"),
        ("openvino", {"rounding_group": 0}, "rounding_group is 0; a whole number of at least 1 is expected"),
        ("openvino", {"speed": 1}, "openvino has no setting speed; allowed: inference_precision, rounding_group"),
        ("tensorrt", {"speed": 1}, "back end tensorrt has no settings; speed cannot be set"),
    ],
)
def test_settings_that_an_engine_does_not_have_are_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_settings(get_backend(name), settings)
