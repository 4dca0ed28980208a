"""The TensorRT back end's decoder on the fake device: the numpy formula, ONNX Runtime on the same graph, and limits."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cuda_stand_in import FakeDevice
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_engines import LIMITS, write_engines
from toy_graphs import Weights, close, reference_logits, toy_config, write_decoder
from toy_parts import graph_file

from blip3v.bundle.engines import EngineLimits
from blip3v.bundle.graph_io import decoder_io
from blip3v.config import ModelConfig
from blip3v.errors import BackendError, CancelledError, OutOfMemoryError, RequestError, UsageError
from blip3v.runtime.backends import Decoder, get_backend
from blip3v.runtime.cancellation import CancelToken, Deadline

CHUNK = 16
_SMALL = dataclasses.replace(LIMITS, prefill_chunk=CHUNK)
Maker = Callable[..., tuple[ModelConfig, Weights, Any]]


@pytest.fixture(scope="module")
def make(gpu: FakeDevice, tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Opens a toy decoder of the wanted form with the fake TensorRT, or with another back end."""
    opened: dict[str, Any] = {}

    def open_one(
        *,
        backend: str = "tensorrt",
        num_kv_heads: int = 2,
        sliding_window: int | None = None,
        precision: str = "float32",
        is_aliased: bool = True,
        limits: EngineLimits = _SMALL,
        chunk: int = CHUNK,
    ) -> tuple[ModelConfig, Weights, Any]:
        config = toy_config(num_kv_heads=num_kv_heads, sliding_window=sliding_window)
        weights = Weights.random(config.text)
        key = f"{backend}-{num_kv_heads}-{sliding_window}-{precision}-{is_aliased}-{limits}-{chunk}"
        if key not in opened:
            folder = tmp_path_factory.mktemp("decoder")
            write_decoder(folder / "decoder.onnx", config, weights, precision, "tensorrt-rtx")
            graph = graph_file(folder / "decoder.onnx", decoder_io(config, "tensorrt-rtx"), precision)
            graph = dataclasses.replace(graph, digest="of the decoder", engines=folder / "engines")
            write_engines(
                folder / "engines", {"decoder": graph}, limits=limits, is_aliased=is_aliased, library=gpu.library
            )
            opened[key] = get_backend(backend).open_decoder(graph, config.text, threads=1, chunk=chunk)
        return config, weights, opened[key]

    return open_one


def _embeds(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 64)).astype(np.float32)


_FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"num_kv_heads": 4}, {"sliding_window": 8}, {"is_aliased": False}],
    ids=["grouped", "all-heads", "window-8", "two-caches"],
)


@_FORMS
def test_every_split_of_prefill_and_steps_equals_the_formula(make: Maker, form: dict[str, Any]) -> None:
    config, weights, decoder = make(**form)
    embeds = _embeds(np.random.default_rng(1), 24)
    expected = reference_logits(config.text, weights, embeds)
    for split in (1, 2, 15, 16, 17, 23, 24):
        session = decoder.session(1, 24)
        logits = [session.prefill([embeds[:split]], Deadline())[0]]
        logits += [session.step(embeds[i : i + 1])[0] for i in range(split, 24)]
        assert close(logits, expected[split - 1 :]), split
        assert session.lengths == (24,)
        session.close()


@_FORMS
@pytest.mark.parametrize("longest", [14, 40], ids=["padded-together", "row-by-row"])
def test_ragged_rows_go_on_and_finish_in_any_order(make: Maker, form: dict[str, Any], longest: int) -> None:
    config, weights, decoder = make(**form)
    rng = np.random.default_rng(3)
    rows = [_embeds(rng, length) for length in (3, longest, 1, 9)]
    session = decoder.session(4, 80)
    found = session.prefill(rows, Deadline())
    for dropped in (None, 1, None, 2, 0, None):
        assert close(found, [reference_logits(config.text, weights, row)[-1] for row in rows])
        if dropped is not None:
            session.drop_row(dropped)
            rows[dropped] = rows[-1]
            rows.pop()
        new = _embeds(rng, len(rows))
        rows = [np.concatenate([row, new[i : i + 1]]) for i, row in enumerate(rows)]
        found = session.step(new)
        assert session.lengths == tuple(map(len, rows))
    # Rows that hold tokens take prompts, together.
    more = [_embeds(rng, 5 + i) for i in range(len(rows))]
    rows = [np.concatenate(pair) for pair in zip(rows, more, strict=True)]
    assert close(session.prefill(more, Deadline()), [reference_logits(config.text, weights, row)[-1] for row in rows])
    session.close()


@_FORMS
def test_prompts_whose_last_chunk_is_one_token_end_in_their_own_rows(make: Maker, form: dict[str, Any]) -> None:
    config, weights, decoder = make(**form)
    rows = [_embeds(np.random.default_rng(5), length) for length in (CHUNK + 1, 1, 2 * CHUNK + 1)]
    session = decoder.session(3, 40)
    expected = [reference_logits(config.text, weights, row)[-1] for row in rows]
    assert close(session.prefill(rows, Deadline()), expected)
    session.close()


@_FORMS
def test_tokens_in_one_run_give_the_logits_after_each_and_can_be_taken_back(make: Maker, form: dict[str, Any]) -> None:
    config, weights, decoder = make(**form)
    assert decoder.max_verified == CHUNK
    embeds, wrong = np.split(_embeds(np.random.default_rng(1), 48), 2)
    expected = reference_logits(config.text, weights, embeds)
    session = decoder.session(1, 40)
    session.prefill([embeds[:6]], Deadline())
    for count in (2, 1, 5):
        first = session.lengths[0]
        found = session.verify(np.concatenate([embeds[first : first + count], wrong[:4]]))
        assert close(found[:count], expected[first : first + count])
        session.truncate(first + count)
        assert close(session.step(embeds[first + count : first + count + 1])[0], expected[first + count])
    session.close()


@_FORMS
def test_a_truncated_session_forgets_what_was_behind(
    make: Maker, form: dict[str, Any], rng: np.random.Generator
) -> None:
    config, weights, decoder = make(**form)
    embeds, others = _embeds(rng, 12), _embeds(rng, 20)
    session = decoder.session(1, 30)
    session.prefill([np.concatenate([embeds[:6], others])], Deadline())
    session.truncate(6)
    assert session.lengths == (6,)
    expected = reference_logits(config.text, weights, embeds)
    assert close(session.prefill([embeds[6:]], Deadline())[0], expected[-1])
    session.close()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_token_by_token_it_equals_onnx_runtime_on_the_same_graph(
    make: Maker, rng: np.random.Generator, precision: str
) -> None:
    """The fake runs the graph with the same kernels over a cache of another size, so hardly anything may differ."""
    prompts, steps = [_embeds(rng, length) for length in (9, 4)], [_embeds(rng, 2) for _ in range(12)]
    found = {}
    for backend in ("tensorrt", "onnxruntime"):
        _, _, decoder = make(backend=backend, precision=precision)
        assert decoder.dtype == precision
        session = decoder.session(2, _SMALL.max_seq_len)
        logits = [session.prefill([prompt.astype(precision) for prompt in prompts], Deadline())]
        logits += [session.step(embeds.astype(precision)) for embeds in steps]
        found[backend] = np.stack(logits)
        session.close()
    assert found["tensorrt"].dtype == np.float32
    assert np.abs(found["tensorrt"] - found["onnxruntime"]).max() < 1e-4
    assert (found["tensorrt"].argmax(-1) == found["onnxruntime"].argmax(-1)).all()


@given(st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sessions_that_take_turns_keep_every_row_right(make: Maker, data: st.DataObject) -> None:
    config, weights, decoder = make(is_aliased=data.draw(st.booleans(), label="aliased"))
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    sessions = [decoder.session(1, 40) for _ in range(2)]
    rows = [_embeds(rng, 3), _embeds(rng, 7)]
    for session, row in zip(sessions, rows, strict=True):
        session.prefill([row], Deadline())
    for turn in data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=10), label="turns"):
        new = _embeds(rng, 1)
        rows[turn] = np.concatenate([rows[turn], new])
        assert close(sessions[turn].step(new)[0], reference_logits(config.text, weights, rows[turn])[-1])
    for session in sessions:
        session.close()


def test_steps_of_one_session_run_as_a_cuda_graph(make: Maker, gpu: FakeDevice, rng: np.random.Generator) -> None:
    before = gpu.num_rtx_graphs
    _, _, decoder = make(chunk=14)
    if gpu.library == "tensorrt_rtx":  # which captures by itself
        assert gpu.num_rtx_graphs == before + 1
        return

    def calls() -> tuple[int, int]:
        return gpu.num_calls.get("cudaStreamBeginCapture", 0), gpu.num_calls.get("cudaGraphLaunch", 0)

    session = decoder.session(2, 40)
    session.prefill([_embeds(rng, 5), _embeds(rng, 3)], Deadline())
    captures, launches = calls()
    for _ in range(5):
        session.step(_embeds(rng, 2))
    assert calls() == (captures + 1, launches + 4)
    session.drop_row(0)  # another shape: run once, then captured again
    for _ in range(3):
        session.step(_embeds(rng, 1))
    assert calls() == (captures + 2, launches + 6)
    session.close()


def test_cuda_graphs_can_be_switched_off(
    make: Maker, gpu: FakeDevice, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_backend("tensorrt"), "cuda_graphs", False)
    before = gpu.num_rtx_graphs, gpu.num_calls.get("cudaStreamBeginCapture", 0)
    config, weights, decoder = make(chunk=15)
    embeds = _embeds(rng, 9)
    session = decoder.session(1, 40)
    found = [session.prefill([embeds[:4]], Deadline())[0], *(session.step(embeds[i : i + 1])[0] for i in range(4, 9))]
    assert close(found, reference_logits(config.text, weights, embeds)[3:])
    assert (gpu.num_rtx_graphs, gpu.num_calls.get("cudaStreamBeginCapture", 0)) == before
    session.close()


def test_sessions_of_several_threads_do_not_mix(make: Maker) -> None:
    config, weights, decoder = make()

    def decode(seed: int) -> bool:
        embeds = _embeds(np.random.default_rng(seed), 20)
        session = decoder.session(1, 20)
        found = [session.prefill([embeds[:8]], Deadline())[0]]
        found += [session.step(embeds[i : i + 1])[0] for i in range(8, 20)]
        session.close()
        return close(found, reference_logits(config.text, weights, embeds)[7:])

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(decode, range(6)))


def test_more_rows_or_tokens_than_the_engine_was_built_for_are_refused(make: Maker, rng: np.random.Generator) -> None:
    _, _, decoder = make()
    with pytest.raises(RequestError, match=r"5 rows at once; the engine was built for at most 4.*max_batch_size"):
        decoder.session(5, 10)
    with pytest.raises(RequestError, match=r"257 tokens; the engine holds at most 256.*max_seq_len"):
        decoder.session(1, 257)
    session = decoder.session(1, 10)
    session.reserve(256)
    with pytest.raises(RequestError, match="300 tokens"):
        session.reserve(300)
    session.prefill([_embeds(rng, 256)], Deadline())
    with pytest.raises(RequestError, match="257 tokens"):
        session.step(_embeds(rng, 1))
    session.close()


def test_padding_that_has_no_room_behind_a_row_is_not_written(make: Maker, rng: np.random.Generator) -> None:
    config, weights, decoder = make()
    rows = [_embeds(rng, 250), _embeds(rng, 2)]
    session = decoder.session(2, 256)
    session.prefill(rows, Deadline())
    more = [_embeds(rng, 1), _embeds(rng, 10)]
    rows = [np.concatenate(pair) for pair in zip(rows, more, strict=True)]
    assert close(session.prefill(more, Deadline()), [reference_logits(config.text, weights, row)[-1] for row in rows])
    session.close()


def test_a_closed_session_gives_its_memory_back(make: Maker, gpu: FakeDevice) -> None:
    config, _, decoder = make()
    gc.collect()  # what failed in earlier tests
    before = gpu.in_use_bytes()
    session = decoder.session(3, 10)
    text = config.text
    assert gpu.in_use_bytes() - before == 2 * text.num_layers * 3 * text.num_kv_heads * 256 * text.head_dim * 4
    session.close()
    session.close()
    assert gpu.in_use_bytes() == before
    with pytest.raises(UsageError, match="closed"):
        session.step(np.zeros((3, 64), np.float32))


def test_a_session_goes_on_after_its_decoder_was_closed(
    tmp_path: Path, gpu: FakeDevice, rng: np.random.Generator
) -> None:
    config = toy_config()
    weights = Weights.random(config.text)
    write_decoder(tmp_path / "decoder.onnx", config, weights, target="tensorrt")
    graph = graph_file(tmp_path / "decoder.onnx", decoder_io(config, "tensorrt"))
    graph = dataclasses.replace(graph, digest="this", engines=tmp_path / "engines")
    write_engines(tmp_path / "engines", {"decoder": graph}, library=gpu.library)
    gc.collect()  # what failed in earlier tests
    before = gpu.in_use_bytes(), gpu.in_use_bytes("pinned")
    decoder: Decoder = get_backend("tensorrt").open_decoder(graph, config.text)
    embeds = _embeds(rng, 12)
    session = decoder.session(1, 12)
    session.prefill([embeds[:8]], Deadline())
    decoder.close()
    expected = reference_logits(config.text, weights, embeds)
    assert close([session.step(embeds[i : i + 1])[0] for i in range(8, 12)], expected[8:])
    session.close()
    assert (gpu.in_use_bytes(), gpu.in_use_bytes("pinned")) == before
    with pytest.raises(UsageError, match="the decoder is closed"):
        decoder.session(1, 4)


def test_a_cancelled_prefill_can_be_taken_back(make: Maker, rng: np.random.Generator) -> None:
    config, weights, decoder = make()
    embeds = _embeds(rng, 60)
    session = decoder.session(1, 64)
    session.prefill([embeds[:6]], Deadline())
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        session.prefill([embeds[6:]], Deadline(cancel=cancel))
    session.truncate(6)
    expected = reference_logits(config.text, weights, embeds)
    assert close(session.prefill([embeds[6:]], Deadline())[0], expected[-1])
    session.close()


@pytest.mark.parametrize(
    ("function", "error", "raised", "message"),
    [
        (
            "cudaMalloc",
            "cudaErrorMemoryAllocation",
            OutOfMemoryError,
            r"the GPU has no \S+ \S+ free for a cache of 1 x",
        ),
        ("cudaMalloc", "cudaErrorUnknown", BackendError, r"cudaMalloc: CUDA failed: cudaErrorUnknown \(error 999\)"),
    ],
    ids=["memory", "other"],
)
def test_what_cuda_refuses_is_our_error(
    make: Maker, gpu: FakeDevice, function: str, error: str, raised: type[Exception], message: str
) -> None:
    _, _, decoder = make()
    gpu.fails[function] = error
    with pytest.raises(raised, match=message):
        decoder.session(1, 10)


@pytest.mark.parametrize("is_aliased", [True, False], ids=["one-cache", "two-caches"])
def test_a_step_that_fails_leaves_the_session_as_it_was(
    make: Maker, gpu: FakeDevice, rng: np.random.Generator, is_aliased: bool
) -> None:
    config, weights, decoder = make(is_aliased=is_aliased)
    embeds = _embeds(rng, 12)
    session = decoder.session(1, 20)
    session.prefill([embeds[:6]], Deadline())
    for i in range(6, 12):
        launched = i > 7 and is_aliased and gpu.library == "tensorrt"
        for function in ["cudaMemcpyAsync" if i == 6 else "cudaStreamSynchronize"] + ["cudaGraphLaunch"] * launched:
            gpu.fails[function] = "cudaErrorUnknown"
            with pytest.raises(BackendError, match="CUDA failed"):
                session.step(_embeds(rng, 1))
            gpu.fails.clear()
        assert session.lengths == (i,)
        found = session.step(embeds[i : i + 1])
    assert close(found[0], reference_logits(config.text, weights, embeds)[-1])
    session.close()
