"""A decoder on two engines: which one runs what, over one cache; what a pair says of itself, and what it refuses.

All that a session promises is shown for pairs too, by the slow half of test_decoder_session.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_graphs import Weights, close, reference_logits, toy_config, write_decoder
from toy_parts import graph_file

from blip3v.bundle import Precision
from blip3v.bundle.graph_io import decoder_io
from blip3v.errors import OutOfMemoryError, ProviderError, UsageError
from blip3v.runtime import GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime import memory as runtime_memory
from blip3v.runtime.backends import choose_backend, get_backend, parse_backends, settings_to_try, with_settings
from blip3v.runtime.backends.openvino.sessions import OpenVinoSession
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.onnxruntime_sessions import OnnxRuntimeSession
from blip3v.runtime.paired import PairedDecoder

PAIRS = ("openvino+onnxruntime", "onnxruntime+openvino")
FP16, FP32, INT8, INT4 = map(Precision.parse, ("fp16", "fp32", "int8", "int4"))


def _open(folder: Path, pair: str, **form: Any) -> tuple[Weights, PairedDecoder, Any]:
    config = toy_config()
    weights = Weights.random(config.text)
    weights = weights.with_int8_cache(config.text) if form else weights
    path = folder / "decoder.onnx"
    write_decoder(path, config, weights)
    graph = graph_file(path, decoder_io(config), **form)
    decoder = get_backend(pair).open_decoder(graph, config.text, threads=1, chunk=16)
    assert isinstance(decoder, PairedDecoder)
    return weights, decoder, config.text


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("form", [{}, {"cache_in_int8": True}], ids=["float32", "int8"])
def test_prompts_go_through_one_engine_and_steps_through_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: str, form: dict[str, bool]
) -> None:
    ran: list[str] = []
    for session_of, name in ((OpenVinoSession, "openvino"), (OnnxRuntimeSession, "onnxruntime")):
        for method in ("prefill", "step"):
            monkeypatch.setattr(session_of, method, _noted(getattr(session_of, method), f"{method} {name}", ran))
    weights, decoder, text = _open(tmp_path, pair, **form)
    prefill, steps = pair.split("+")
    embeds = np.random.default_rng(3).normal(size=(70, 64)).astype(np.float32)
    expected = reference_logits(text, weights, embeds)
    with_short_turn = [(0, 40), (40, 41), (41, 44), (44, 45), (45, 66), (66, 67)]
    session = decoder.session(1, 70)
    for first, last in with_short_turn:
        part = embeds[first:last]
        logits = session.step(part) if last == first + 1 else session.prefill([part], Deadline())
        assert close(logits[0], expected[last - 1])
    assert ran == [
        *(f"prefill {prefill}", f"step {steps}", f"prefill {steps}", f"step {steps}"),
        *(f"prefill {prefill}", f"step {steps}"),
    ]
    session.truncate(40)
    assert close(session.prefill([embeds[40:60]], Deadline())[0], expected[59])


def _noted(method: Any, name: str, ran: list[str]) -> Any:
    def run(*arguments: Any) -> Any:
        ran.append(name)
        return method(*arguments)

    return run


@pytest.mark.parametrize("pair", PAIRS)
def test_rows_of_a_batch_end_one_by_one(tmp_path: Path, pair: str) -> None:
    weights, decoder, text = _open(tmp_path, pair)
    rng = np.random.default_rng(5)
    rows = [rng.normal(size=(count, 64)).astype(np.float32) for count in (20, 9, 14)]
    session = decoder.session(3, 24)
    session.prefill(rows, Deadline())
    session.drop_row(0)
    rows = [rows[2], rows[1]]
    for _ in range(3):
        new = rng.normal(size=(2, 64)).astype(np.float32)
        rows = [np.concatenate([row, new[i : i + 1]]) for i, row in enumerate(rows)]
        found = session.step(new)
        assert close(found, [reference_logits(text, weights, row)[-1] for row in rows])
    assert list(session.lengths) == [17, 12]


def test_the_cache_is_there_once_and_grows_with_the_prompt(tmp_path: Path) -> None:
    _, decoder, _ = _open(tmp_path, "openvino+onnxruntime")
    session = decoder.session(1, 1000)
    session.prefill([np.zeros((20, 64), np.float32)], Deadline())
    assert session.cache.capacity < 200
    session.step(np.zeros((1, 64), np.float32))
    assert session.cache.capacity >= 1000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_memory, "available_bytes", lambda: 0)
        with pytest.raises(OutOfMemoryError, match="a cache of 1 x 1000 tokens"):
            decoder.session(1, 1000)
    session.close()
    decoder.close()
    with pytest.raises(UsageError, match="closed"):
        decoder.session(1, 10)


def test_two_forms_of_the_weights_in_onnxruntime_have_all_their_room_at_once(tmp_path: Path) -> None:
    """As ``onnxruntime:cpu-int8+onnxruntime`` opens them. A cache that grows at the first step copies the prompt."""
    weights, decoder, text = _open(tmp_path, "openvino+onnxruntime")
    forms = [_onnxruntime_decoder(tmp_path) for _ in range(2)]
    decoder = PairedDecoder(decoder.execution, *forms)
    session = decoder.session(1, 1000)
    capacity = session.cache.capacity
    assert capacity >= 1000
    embeds = np.random.default_rng(3).normal(size=(22, 64)).astype(np.float32)
    expected = reference_logits(text, weights, embeds)
    assert close(session.prefill([embeds[:20]], Deadline())[0], expected[19])
    assert close(session.step(embeds[20:21])[0], expected[20])
    assert close(session.verify(embeds[21:])[0], expected[21])
    assert session.cache.capacity == capacity


def _onnxruntime_decoder(folder: Path) -> Any:
    config = toy_config()
    graph = graph_file(folder / "decoder.onnx", decoder_io(config))
    return get_backend("onnxruntime").open_decoder(graph, config.text, threads=1, chunk=16)


def test_a_bundle_answers_and_says_what_computed_it(bundle_path: Path) -> None:
    options = GenerationOptions(max_new_tokens=6, ignore_stop_token=True)
    answers = {}
    for backend in ("onnxruntime", "video_encoder=onnxruntime,decoder=openvino+onnxruntime"):
        with VideoLM.open(bundle_path, backend=backend, threads=1) as lm:
            video = lm.encode_pixels(np.random.default_rng(4).uniform(-1, 1, (4, 3, 16, 16)).astype(np.float32))
            assert isinstance(video, VideoTokens)
            with lm.chat(video) as chat:
                answers[backend] = [chat.ask(question, options=options) for question in ("Which way?", "Why?")]
    alone, paired = answers.values()
    assert [each.token_ids for each in alone] == [each.token_ids for each in paired]
    decoder = paired[0].backend.decoder
    assert decoder.backend == "openvino+onnxruntime"
    assert str(decoder) == "fp32 on OpenVINO (prompts) + ONNX Runtime (steps) CPU"


def test_a_pair_is_counted_with_the_weights_of_both(bundle_path: Path) -> None:
    needed = {
        name: VideoLM.estimate(bundle_path, backend=f"decoder={name}").memory_bytes
        for name in ("onnxruntime", "openvino", "openvino+onnxruntime")
    }
    assert needed["openvino+onnxruntime"] > max(needed["openvino"], needed["onnxruntime"])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("openvino+onnxruntime", UsageError, r"`backend='decoder=openvino\+onnxruntime'`"),
        ("video_encoder=openvino+onnxruntime", UsageError, "the video encoder runs on one"),
        ("decoder=onnxruntime+onnxruntime-cuda", ProviderError, "onnxruntime-cuda cannot be one of two"),
        ("decoder=openvino:gpu+onnxruntime", ProviderError, "openvino:gpu cannot be one of two"),
        ("decoder=tensorrt+onnxruntime", ProviderError, "tensorrt cannot be one of two.*allowed: onnxruntime, onnxr"),
        ("decoder=auto+onnxruntime", UsageError, "'auto' is unknown"),
        ("decoder=openvino+onnxruntime+openvino", ProviderError, "cannot be one of two"),
    ],
)
def test_what_cannot_be_paired_is_refused(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        parse_backends(text)


def test_a_pair_is_refused_what_one_of_the_two_does_not_run() -> None:
    pair = "openvino+onnxruntime"
    assert parse_backends(f"decoder={pair}") == {"video_encoder": "auto", "decoder": pair}
    assert choose_backend(pair, "decoder", "cpu", precision=INT4.decoder).name == pair
    with pytest.raises(ProviderError, match=r"whose cache is fp16.*export with the precision fp16\+kv-int8"):
        choose_backend(pair, "decoder", precision=FP16.decoder)
    with pytest.raises(ProviderError, match="openvino does not run graphs exported for tensorrt"):
        choose_backend(pair, "decoder", target="tensorrt", precision=FP32.decoder)


@pytest.mark.parametrize(
    ("precision", "message"),
    [
        (INT8.decoder, "does not run decoders in int8, which onnxruntime multiplies as int8 already; choose"),
        (FP16.decoder, "does not run decoders in fp16, without blocks; choose the back end onnxruntime"),
        (INT4.video_encoder, "and the decoder alone, .* does not run video encoders in int8"),
    ],
)
def test_weights_for_prompts_are_for_decoders_in_blocks(precision: Any, message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        choose_backend("onnxruntime:cpu-int8", "decoder", precision=precision)
    backend = choose_backend("onnxruntime:cpu-int8", "decoder", precision=INT4.decoder)
    with pytest.raises(UsageError, match="onnxruntime:cpu-int8 has no settings"):
        with_settings(backend, {"spinning": False})
    assert settings_to_try(backend, "decoder", INT4.decoder) == ()
    assert backend.layer_dtype(INT4.decoder, "int4-block", 128, 96) == "int8"


def test_each_engine_says_what_it_computes_in() -> None:
    execution = get_backend("onnxruntime+openvino:cpu-bf16").execution(INT4.decoder)
    assert execution.dtype == "int8 by int4 (prompts) + bf16 (steps)"
    assert execution.device == "CPU"
    assert get_backend("onnxruntime:cpu-int8+onnxruntime").execution(INT4.decoder).dtype == (
        "int8 (prompts) + int8 by int4 (steps)"
    )
    assert get_backend("openvino:cpu-bf16+openvino").execution(INT8.decoder).engine == "OpenVINO"
