"""On every back end, a session equals the uncached numpy formula, however the tokens are split into calls.

The seeds are ones whose rows are not near a tie where the cache is in int8; see ``is_near_a_tie``.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_graphs import Weights, close, is_near_a_tie, reference_logits, rotate, toy_config, write_decoder
from toy_parts import BACKENDS, FAKE_CUDA, PAIRS, DecoderMaker, graph_file, open_backend

from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.precision import PRECISIONS
from blip3v.errors import CancelledError
from blip3v.runtime.cancellation import CancelToken, Deadline

_FORMS = pytest.mark.parametrize(
    "form",
    [
        *({}, {"num_kv_heads": 4}, {"num_kv_heads": 1}, {"sliding_window": 8}),
        *({"cache_in_int8": True}, {"cache_in_int8": True, "num_kv_heads": 1, "sliding_window": 8}),
    ],
    ids=["grouped", "all-heads", "one-kv-head", "window-8", "int8", "int8-one-kv-head-window-8"],
)
_CACHES = pytest.mark.parametrize("cache_in_int8", [False, True], ids=["float32", "int8"])


# Also the back end for CUDA, whose sessions keep their cache in the memory of a device. These are parameters of the
# shared fixture, since fixtures that depend on it would outlive another one of the same name.
pytestmark = pytest.mark.parametrize("backend", [*BACKENDS, *PAIRS, FAKE_CUDA], indirect=True, scope="session")


def _embeds(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 64)).astype(np.float32)


@_FORMS
def test_every_split_of_prefill_and_steps_equals_the_formula(make_decoder: DecoderMaker, form: dict[str, int]) -> None:
    config, weights, decoder = make_decoder(**form)
    embeds = _embeds(np.random.default_rng(3), 24)
    expected = reference_logits(config.text, weights, embeds)
    for split in range(1, 25):
        session = decoder.session(1, 24)
        logits = [session.prefill([embeds[:split]], Deadline())[0]]
        logits += [session.step(embeds[i : i + 1])[0] for i in range(split, 24)]
        assert close(logits, expected[split - 1 :]), split
        assert list(session.lengths) == [24]
        session.close()


@_FORMS
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 23, 24])
def test_chunked_prefill_equals_the_formula(make_decoder: DecoderMaker, form: dict[str, int], chunk: int) -> None:
    config, weights, decoder = make_decoder(**form, chunk=chunk)
    embeds = _embeds(np.random.default_rng(3), 24)
    expected = reference_logits(config.text, weights, embeds)
    session = decoder.session(1, 24)
    assert close(session.prefill([embeds], Deadline())[0], expected[-1])


@_CACHES
def test_a_second_prefill_goes_on_where_the_session_ends(
    make_decoder: DecoderMaker, rng: np.random.Generator, cache_in_int8: bool
) -> None:
    config, weights, decoder = make_decoder(cache_in_int8=cache_in_int8, chunk=4)
    embeds = _embeds(rng, 30)
    expected = reference_logits(config.text, weights, embeds)
    session = decoder.session(1, 30)
    session.prefill([embeds[:9]], Deadline())
    session.step(embeds[9:10])
    assert close(session.prefill([embeds[10:]], Deadline())[0], expected[-1])


@_CACHES
def test_a_truncated_session_forgets_what_was_behind(
    make_decoder: DecoderMaker, rng: np.random.Generator, cache_in_int8: bool
) -> None:
    config, weights, decoder = make_decoder(cache_in_int8=cache_in_int8)
    embeds, others = _embeds(rng, 12), _embeds(rng, 20)
    session = decoder.session(1, 30)
    session.prefill([np.concatenate([embeds[:6], others])], Deadline())
    session.truncate(6)
    assert list(session.lengths) == [6]
    expected = reference_logits(config.text, weights, embeds)
    assert close(session.prefill([embeds[6:]], Deadline())[0], expected[-1])


@pytest.mark.parametrize("chunk", [64, 5], ids=["padded-together", "row-by-row"])
@_FORMS
def test_a_ragged_batch_equals_one_by_one(make_decoder: DecoderMaker, form: dict[str, int], chunk: int) -> None:
    config, weights, decoder = make_decoder(**form, chunk=chunk)
    rng = np.random.default_rng(695)
    lengths = [3, 17, 1, 9]
    rows = [_embeds(rng, length + 6) for length in lengths]
    expected = [reference_logits(config.text, weights, row) for row in rows]
    session = decoder.session(4, 23)
    found = session.prefill([row[:length] for row, length in zip(rows, lengths, strict=True)], Deadline())
    assert close(found, [logits[n - 1] for logits, n in zip(expected, lengths, strict=True)])
    for step in range(6):
        found = session.step(np.stack([row[n + step] for row, n in zip(rows, lengths, strict=True)]))
        assert close(found, [logits[n + step] for logits, n in zip(expected, lengths, strict=True)])


@_CACHES
@pytest.mark.parametrize("drop", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_dropped_row_leaves_the_others_as_they_are(
    make_decoder: DecoderMaker, drop: int, cache_in_int8: bool
) -> None:
    config, weights, decoder = make_decoder(cache_in_int8=cache_in_int8)
    rng = np.random.default_rng(8)
    lengths = [5, 11, 8]
    rows = [_embeds(rng, length + 3) for length in lengths]
    session = decoder.session(3, 20)
    session.prefill([row[:length] for row, length in zip(rows, lengths, strict=True)], Deadline())
    session.drop_row(drop)
    order = [0, 1, 2]
    order[drop] = order[-1]
    order.pop()
    for step in range(3):
        found = session.step(np.stack([rows[i][lengths[i] + step] for i in order]))
        expected = [reference_logits(config.text, weights, rows[i])[lengths[i] + step] for i in order]
        assert close(found, expected)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_of_steps_and_finished_rows_keeps_every_row_right(
    make_decoder: DecoderMaker, data: st.DataObject
) -> None:
    config, weights, decoder = make_decoder(
        chunk=data.draw(st.integers(1, 16), label="chunk"), cache_in_int8=data.draw(st.booleans(), label="int8")
    )
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4), label="lengths")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    rows = [_embeds(rng, length) for length in lengths]
    session = decoder.session(len(rows), data.draw(st.integers(1, 20), label="tokens"))
    session.prefill(rows, Deadline())
    for _ in range(data.draw(st.integers(1, 8), label="steps")):
        if len(rows) > 1 and data.draw(st.booleans(), label="drop"):
            dropped = data.draw(st.integers(0, len(rows) - 1), label="row")
            session.drop_row(dropped)
            rows[dropped] = rows[-1]
            rows.pop()
        new = _embeds(rng, len(rows))
        rows = [np.concatenate([row, new[i : i + 1]]) for i, row in enumerate(rows)]
        found = session.step(new)
        for logits, row in zip(found, rows, strict=True):
            if not is_near_a_tie(config.text, weights, row):
                assert close(logits, reference_logits(config.text, weights, row)[-1])
        assert list(session.lengths) == [len(row) for row in rows]
    session.close()


@_CACHES
def test_a_session_that_grows_keeps_its_tokens(make_decoder: DecoderMaker, cache_in_int8: bool) -> None:
    config, weights, decoder = make_decoder(cache_in_int8=cache_in_int8)
    embeds = _embeds(np.random.default_rng(4), 140)
    expected = reference_logits(config.text, weights, embeds)
    session = decoder.session(1, 10)
    session.prefill([embeds[:60]], Deadline())
    for i in range(60, 140):
        logits = session.step(embeds[i : i + 1])
    assert close(logits[0], expected[-1])


def test_an_int8_cache_takes_a_quarter_of_the_memory(
    backend: str, make_decoder: DecoderMaker, rng: np.random.Generator
) -> None:
    sizes = {}
    for in_int8 in (False, True):
        config, _, decoder = make_decoder(cache_in_int8=in_int8)
        session = decoder.session(1, 64)
        session.prefill([_embeds(rng, 9)], Deadline())
        keys, values = session.cache.layer(0, 0, 1)
        assert keys.dtype == values.dtype == (np.int8 if in_int8 else np.float32)
        graph = graph_file(Path(__file__), decoder_io(config), cache_in_int8=in_int8)
        sizes[in_int8] = open_backend(backend).kv_bytes_per_token(config.text, graph)
    assert sizes[False] == 4 * sizes[True]


def test_an_int8_cache_holds_rotated_keys_and_values_in_steps_of_their_scales(
    make_decoder: DecoderMaker, rng: np.random.Generator
) -> None:
    """The first layer's, whose inputs are the same on every engine; nothing is written behind them."""
    config, weights, decoder = make_decoder(cache_in_int8=True, chunk=4)
    text, w = config.text, weights.values
    embeds = _embeds(rng, 10)
    session = decoder.session(1, 16)
    session.prefill([embeds], Deadline())
    found = [each[0] for each in session.cache.layer(0, 0, 1)]
    normed = embeds / np.sqrt((embeds**2).mean(-1, keepdims=True) + text.rms_norm_eps) * w["0.norm1"]
    groups, head = text.num_kv_heads, text.head_dim
    keys, values = np.split((normed @ w["0.qkv"])[:, text.num_heads * head :], 2, axis=1)
    keys, values = (each.reshape(10, groups, head).swapaxes(0, 1) for each in (keys, values))
    for name, got, exact in (("key", found[0], rotate(w, keys)), ("value", found[1], values)):
        scale = w[f"0.{name}_scale"][0]
        steps = np.clip(np.round(exact / scale), -128, 127)
        assert np.abs(got[:, :10] - steps).max() <= 1  # on the edge between two steps
        assert (got[:, :10] != steps).mean() < 0.01
        assert not got[:, 10:].any()


def test_half_precision_stays_near_the_formula(
    backend: str, make_decoder: DecoderMaker, rng: np.random.Generator
) -> None:
    if open_backend(backend).refusal(PRECISIONS["fp16"].decoder):
        pytest.skip("its engines keep such a cache in two dtypes")
    config, weights, decoder = make_decoder(precision="float16")
    assert decoder.dtype == np.float16
    embeds = _embeds(rng, 20)
    expected = reference_logits(config.text, weights, embeds)
    session = decoder.session(1, 20)
    session.prefill([embeds[:12]], Deadline())
    logits = [session.step(embeds[i : i + 1])[0] for i in range(12, 20)]
    assert np.abs(logits - expected[12:]).max() / np.abs(expected).max() < 2e-2


def test_a_cancelled_prefill_can_be_taken_back(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    config, weights, decoder = make_decoder(chunk=4)
    embeds = _embeds(rng, 40)
    session = decoder.session(1, 64)
    session.prefill([embeds[:6]], Deadline())
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        session.prefill([embeds[6:]], Deadline(cancel=cancel))
    session.truncate(6)
    expected = reference_logits(config.text, weights, embeds)
    assert close(session.prefill([embeds[6:]], Deadline())[0], expected[-1])


def test_sessions_of_several_threads_do_not_mix(make_decoder: DecoderMaker) -> None:
    config, weights, decoder = make_decoder()

    def decode(seed: int) -> bool:
        embeds = _embeds(np.random.default_rng(seed), 20)
        session = decoder.session(1, 20)
        found = [session.prefill([embeds[:8]], Deadline())[0]]
        found += [session.step(embeds[i : i + 1])[0] for i in range(8, 20)]
        session.close()
        return close(found, reference_logits(config.text, weights, embeds)[7:])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(decode, range(8)))


def test_a_session_goes_on_after_its_decoder_was_closed(tmp_path: Path, backend: str, rng: np.random.Generator) -> None:
    config = toy_config()
    weights = Weights.random(config.text)
    path = tmp_path / "decoder.onnx"
    write_decoder(path, config, weights)
    decoder = open_backend(backend).open_decoder(graph_file(path, decoder_io(config)), config.text, threads=1)
    embeds = _embeds(rng, 12)
    session = decoder.session(1, 12)
    session.prefill([embeds[:8]], Deadline())
    decoder.close()
    expected = reference_logits(config.text, weights, embeds)
    assert close([session.step(embeds[i : i + 1])[0] for i in range(8, 12)], expected[8:])
    session.close()
