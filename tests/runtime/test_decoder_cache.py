"""Cached decoding equals the uncached numpy formula, however the tokens are split into calls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_graphs import reference_logits, toy_config
from toy_parts import DecoderMaker

from blip3v.runtime.kv_cache import CachePool, KVCache, cache_bytes, round_capacity

_FORMS = pytest.mark.parametrize(
    "form",
    [{}, {"num_kv_heads": 4}, {"num_kv_heads": 1}, {"sliding_window": 8}],
    ids=["grouped", "all-heads", "one-kv-head", "window-8"],
)


def close(found: object, expected: object) -> bool:
    """Largest logits are about 20; sums of float32 in another order differ by some 1e-6 of that."""
    return np.allclose(np.asarray(found), np.asarray(expected), rtol=1e-4, atol=2e-4)


def _embeds(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.normal(size=(count, 64)).astype(np.float32)


@_FORMS
def test_every_split_of_prefill_and_steps_equals_the_formula(make_decoder: DecoderMaker, form: dict[str, int]) -> None:
    config, weights, decoder = make_decoder(**form)
    embeds = _embeds(np.random.default_rng(1), 24)
    expected = reference_logits(config.text, weights, embeds)
    for split in range(1, 25):
        cache = decoder.take_cache(1, 24)
        logits = [decoder.prefill(cache, [embeds[:split]])[0]]
        logits += [decoder.step(cache, embeds[i : i + 1])[0] for i in range(split, 24)]
        assert close(logits, expected[split - 1 :]), split
        assert cache.lengths == [24]
        decoder.give_back(cache)


@_FORMS
@pytest.mark.parametrize("chunk", [1, 2, 5, 7, 23, 24])
def test_chunked_prefill_equals_the_formula(make_decoder: DecoderMaker, form: dict[str, int], chunk: int) -> None:
    config, weights, decoder = make_decoder(**form, chunk=chunk)
    embeds = _embeds(np.random.default_rng(2), 24)
    expected = reference_logits(config.text, weights, embeds)
    cache = decoder.take_cache(1, 24)
    assert close(decoder.prefill(cache, [embeds])[0], expected[-1])


def test_a_second_prefill_goes_on_where_the_cache_ends(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    config, weights, decoder = make_decoder(chunk=4)
    embeds = _embeds(rng, 30)
    expected = reference_logits(config.text, weights, embeds)
    cache = decoder.take_cache(1, 30)
    decoder.prefill(cache, [embeds[:9]])
    decoder.step(cache, embeds[9:10])
    assert close(decoder.prefill(cache, [embeds[10:]])[0], expected[-1])


def test_a_shortened_cache_forgets_what_was_behind(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    config, weights, decoder = make_decoder()
    embeds, others = _embeds(rng, 12), _embeds(rng, 20)
    cache = decoder.take_cache(1, 30)
    decoder.prefill(cache, [np.concatenate([embeds[:6], others])])
    cache.lengths[0] = 6
    expected = reference_logits(config.text, weights, embeds)
    assert close(decoder.prefill(cache, [embeds[6:]])[0], expected[-1])


@pytest.mark.parametrize("chunk", [64, 5], ids=["padded-together", "row-by-row"])
@_FORMS
def test_a_ragged_batch_equals_one_by_one(make_decoder: DecoderMaker, form: dict[str, int], chunk: int) -> None:
    config, weights, decoder = make_decoder(**form, chunk=chunk)
    rng = np.random.default_rng(3)
    lengths = [3, 17, 1, 9]
    rows = [_embeds(rng, length + 6) for length in lengths]
    expected = [reference_logits(config.text, weights, row) for row in rows]
    cache = decoder.take_cache(4, 23)
    found = decoder.prefill(cache, [row[:length] for row, length in zip(rows, lengths, strict=True)])
    assert close(found, [logits[n - 1] for logits, n in zip(expected, lengths, strict=True)])
    for step in range(6):
        found = decoder.step(cache, np.stack([row[n + step] for row, n in zip(rows, lengths, strict=True)]))
        assert close(found, [logits[n + step] for logits, n in zip(expected, lengths, strict=True)])


@pytest.mark.parametrize("drop", [0, 1, 2], ids=["first", "middle", "last"])
def test_a_dropped_row_leaves_the_others_as_they_are(make_decoder: DecoderMaker, drop: int) -> None:
    config, weights, decoder = make_decoder()
    rng = np.random.default_rng(4)
    lengths = [5, 11, 8]
    rows = [_embeds(rng, length + 3) for length in lengths]
    cache = decoder.take_cache(3, 20)
    decoder.prefill(cache, [row[:length] for row, length in zip(rows, lengths, strict=True)])
    cache.drop_row(drop)
    order = [0, 1, 2]
    order[drop] = order[-1]
    order.pop()
    for step in range(3):
        found = decoder.step(cache, np.stack([rows[i][lengths[i] + step] for i in order]))
        expected = [reference_logits(config.text, weights, rows[i])[lengths[i] + step] for i in order]
        assert close(found, expected)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_order_of_steps_and_finished_rows_keeps_every_row_right(
    make_decoder: DecoderMaker, data: st.DataObject
) -> None:
    config, weights, decoder = make_decoder(chunk=data.draw(st.integers(1, 16), label="chunk"))
    lengths = data.draw(st.lists(st.integers(1, 14), min_size=1, max_size=4), label="lengths")
    rng = np.random.default_rng(data.draw(st.integers(0, 99), label="seed"))
    rows = [_embeds(rng, length) for length in lengths]
    cache = decoder.take_cache(len(rows), data.draw(st.integers(1, 20), label="tokens"))
    decoder.prefill(cache, rows)
    for _ in range(data.draw(st.integers(1, 8), label="steps")):
        if len(rows) > 1 and data.draw(st.booleans(), label="drop"):
            dropped = data.draw(st.integers(0, len(rows) - 1), label="row")
            cache.drop_row(dropped)
            rows[dropped] = rows[-1]
            rows.pop()
        new = _embeds(rng, len(rows))
        rows = [np.concatenate([row, new[i : i + 1]]) for i, row in enumerate(rows)]
        found = decoder.step(cache, new)
        expected = [reference_logits(config.text, weights, row)[-1] for row in rows]
        assert close(found, expected)
        assert cache.lengths == [len(row) for row in rows]
    decoder.give_back(cache)


def test_a_cache_that_grows_keeps_its_tokens(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    config, weights, decoder = make_decoder()
    embeds = _embeds(rng, 140)
    expected = reference_logits(config.text, weights, embeds)
    cache = decoder.take_cache(1, 10)
    decoder.prefill(cache, [embeds[:60]])
    capacities = {cache.capacity}
    for i in range(60, 140):
        logits = decoder.step(cache, embeds[i : i + 1])
        capacities.add(cache.capacity)
    assert capacities == {64, 128, 256}
    assert close(logits[0], expected[-1])


def test_half_precision_stays_near_the_formula(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    config, weights, decoder = make_decoder(precision="float16")
    assert decoder.dtype == np.float16
    embeds = _embeds(rng, 20)
    expected = reference_logits(config.text, weights, embeds)
    cache = decoder.take_cache(1, 20)
    decoder.prefill(cache, [embeds[:12]])
    logits = [decoder.step(cache, embeds[i : i + 1])[0] for i in range(12, 20)]
    assert cache.layer(0, 0, 1)[0].dtype == np.float16
    assert np.abs(logits - expected[12:]).max() / np.abs(expected).max() < 2e-2


def test_the_graph_writes_into_the_cache_in_place(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    _, _, decoder = make_decoder()
    cache = decoder.take_cache(1, 64)
    decoder.prefill(cache, [_embeds(rng, 5)])
    for layer in range(3):
        for part in cache.layer(layer, 0, 1):
            assert np.abs(part[:, :, :5]).min() > 0
            assert not part[:, :, 5:].any()


def test_a_prefill_can_be_stopped_between_chunks(make_decoder: DecoderMaker, rng: np.random.Generator) -> None:
    _, _, decoder = make_decoder(chunk=4)
    calls: list[object] = []

    def between() -> None:
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt

    cache = decoder.take_cache(1, 64)
    with pytest.raises(KeyboardInterrupt):
        decoder.prefill(cache, [_embeds(rng, 40)], between)
    assert cache.lengths == [8]


@given(st.integers(1, 5000), st.integers(64, 4096))
@settings(deadline=None)
def test_capacity_is_a_power_of_two_that_holds_the_tokens_or_the_whole_context(tokens: int, context: int) -> None:
    capacity = round_capacity(tokens, context)
    assert capacity == context or (
        capacity >= tokens and capacity & (capacity - 1) == 0 and capacity < 2 * max(tokens, 64)
    )


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 256)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_a_pool_keeps_free_caches_within_its_limit(requests: list[tuple[int, int]]) -> None:
    text = toy_config().text
    limit = cache_bytes(text, np.dtype(np.float32), 1, 256)
    pool = CachePool(text, np.dtype(np.float32), limit)
    caches: list[KVCache] = []
    for rows, tokens in requests:
        cache = pool.take(rows, tokens)
        assert cache.lengths == [0] * rows
        assert cache.capacity >= tokens
        assert all(cache is not other for other in caches)
        caches.append(cache)
    for cache in caches:
        pool.give_back(cache)
        assert pool.num_bytes <= limit
    pool.clear()
    assert pool.num_bytes == 0


def test_a_pool_hands_the_same_memory_out_again() -> None:
    text = toy_config().text
    pool = CachePool(text, np.dtype(np.float32), 2**30)
    first = pool.take(1, 100)
    pool.give_back(first)
    assert pool.take(1, 80) is first
    assert isinstance(pool.take(1, 80), KVCache)
