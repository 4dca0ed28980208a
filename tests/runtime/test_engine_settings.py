"""Settings of engines that tuning may choose: what they change, what they leave, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_graphs import Weights, toy_config, write_decoder
from toy_parts import BACKENDS, graph_file

from blip3v.bundle.graph_io import decoder_io
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
        ("openvino", {"speed": 1}, "back end openvino has no settings; speed cannot be set"),
        ("tensorrt", {"speed": 1}, "back end tensorrt has no settings; speed cannot be set"),
    ],
)
def test_settings_that_an_engine_does_not_have_are_refused(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        with_settings(get_backend(name), settings)
