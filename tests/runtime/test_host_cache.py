"""The KV cache in main memory: capacity, growth in place, and reuse by later requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_graphs import toy_config
from toy_parts import DecoderMaker

from blip3v.runtime.backends.onnxruntime import OnnxRuntimeSession
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.host_cache import CachePool, KVCache, cache_bytes, round_capacity

# Only ONNX Runtime keeps its cache there.
_ON_ONNXRUNTIME = pytest.mark.parametrize("backend", ["onnxruntime"], indirect=True)


def _session(make_decoder: DecoderMaker, num_tokens: int, precision: str = "float32") -> OnnxRuntimeSession:
    session = make_decoder(precision=precision)[2].session(1, num_tokens)
    assert isinstance(session, OnnxRuntimeSession)
    return session


def _embeds(count: int) -> np.ndarray:
    return np.random.default_rng(11).normal(size=(count, 64)).astype(np.float32)


@_ON_ONNXRUNTIME
def test_a_cache_doubles_up_to_the_context(make_decoder: DecoderMaker) -> None:
    embeds, session = _embeds(140), _session(make_decoder, 10)
    session.prefill([embeds[:60]], Deadline())
    capacities = {session.cache.capacity}
    for i in range(60, 140):
        session.step(embeds[i : i + 1])
        capacities.add(session.cache.capacity)
    assert capacities == {64, 128, 256}


@_ON_ONNXRUNTIME
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_graph_writes_into_the_cache_in_place(make_decoder: DecoderMaker, precision: str) -> None:
    session = _session(make_decoder, 64, precision)
    session.prefill([_embeds(5)], Deadline())
    for layer in range(3):
        for part in session.cache.layer(layer, 0, 1):
            assert part.dtype == precision
            assert np.abs(part[:, :, :5]).min() > 0
            assert not part[:, :, 5:].any()


@_ON_ONNXRUNTIME
def test_a_closed_session_gives_its_memory_to_the_next(make_decoder: DecoderMaker) -> None:
    _, _, decoder = make_decoder()
    first = decoder.session(1, 100)
    assert isinstance(first, OnnxRuntimeSession)
    cache = first.cache
    first.close()
    first.close()
    second = decoder.session(1, 80)
    assert isinstance(second, OnnxRuntimeSession)
    assert second.cache is cache


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
        cache = pool.acquire(rows, tokens)
        assert cache.lengths == [0] * rows
        assert cache.capacity >= tokens
        assert all(cache is not other for other in caches)
        caches.append(cache)
    for cache in caches:
        pool.release(cache)
        assert pool.num_bytes <= limit
    pool.clear()
    assert pool.num_bytes == 0


def test_a_pool_hands_the_same_memory_out_again() -> None:
    text = toy_config().text
    pool = CachePool(text, np.dtype(np.float32), 2**30)
    first = pool.acquire(1, 100)
    pool.release(first)
    assert pool.acquire(1, 80) is first
    assert isinstance(pool.acquire(1, 80), KVCache)
