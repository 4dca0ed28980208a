"""The KV cache in main memory: room for what is asked, growth in place, and pages that cost only what is written."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_graphs import toy_config
from toy_parts import DecoderMaker

from blip3v.config import TextConfig, preset
from blip3v.errors import OutOfMemoryError
from blip3v.runtime import host_cache, memory
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.host_cache import KVCache, cache_bytes, pad_prompts
from blip3v.runtime.onnxruntime_sessions import OnnxRuntimeSession

FLOAT32 = np.dtype(np.float32)
TOY = toy_config().text

_NEEDS_PROC = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def _fill(cache: KVCache, text: TextConfig, tokens: int) -> None:
    """Writes numbers that differ for each layer, part, row and token."""
    for layer in range(text.num_layers):
        for part, array in enumerate(cache.layer(layer, 0, cache.rows)):
            for row in range(cache.rows):
                array[row, :, :tokens] = np.arange(tokens)[:, None] + 1000 * (1 + layer) + 100 * part + row / 8
    cache.lengths = [tokens] * cache.rows


def _contents(cache: KVCache, text: TextConfig, tokens: int) -> np.ndarray:
    return np.stack(
        [np.stack(cache.layer(layer, 0, cache.rows))[..., :tokens, :] for layer in range(text.num_layers)]
    ).copy()


@pytest.mark.parametrize("backend", ["onnxruntime"], indirect=True)
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_the_graph_writes_into_the_cache_in_place(make_decoder: DecoderMaker, precision: str) -> None:
    session = make_decoder(precision=precision)[2].session(1, 64)
    assert isinstance(session, OnnxRuntimeSession)
    embeds = np.random.default_rng(11).normal(size=(5, 64)).astype(np.float32)
    session.prefill([embeds], Deadline())
    for layer in range(3):
        for part in session.cache.layer(layer, 0, 1):
            assert part.dtype == precision
            assert np.abs(part[:, :, :5]).min() > 0
            assert not part[:, :, 5:].any()


@given(st.lists(st.integers(1, 300), min_size=1, max_size=6), st.sampled_from([1, 64, 128]))
@settings(deadline=None)
def test_a_cache_has_room_for_what_was_asked_and_keeps_what_is_there(asked: list[int], step: int) -> None:
    cache, most = KVCache(TOY, FLOAT32, 2, step=step), 0
    for tokens in asked:
        before = _contents(cache, TOY, most)
        cache.reserve(tokens)
        assert tokens <= cache.capacity < max([*asked, 1]) + step
        assert np.array_equal(_contents(cache, TOY, most), before)
        most = max(most, tokens)
        _fill(cache, TOY, most)


def test_the_last_row_takes_the_place_of_a_dropped_one() -> None:
    cache = KVCache(TOY, FLOAT32, 3, step=64)
    cache.reserve(10)
    _fill(cache, TOY, 10)
    rows = _contents(cache, TOY, 10)
    cache.drop_row(0)
    assert np.array_equal(_contents(cache, TOY, 10), rows[:, :, [2, 1]])
    cache.reserve(100)
    assert np.array_equal(_contents(cache, TOY, 10), rows[:, :, [2, 1]])


def test_a_growth_that_was_interrupted_goes_on_with_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle leaves some layers with the new capacity and some with the old."""
    cache = KVCache(TOY, FLOAT32, 1, step=64)
    cache.reserve(64)
    _fill(cache, TOY, 64)
    before = _contents(cache, TOY, 64)

    class Interrupted(list[np.ndarray]):
        def __setitem__(self, index: object, value: object) -> None:
            if index == 1:
                raise KeyboardInterrupt
            super().__setitem__(index, value)  # type: ignore[call-overload]

    cache._layers_2BHSK = Interrupted(cache._layers_2BHSK)
    with pytest.raises(KeyboardInterrupt):
        cache.reserve(100)
    cache._layers_2BHSK = list(cache._layers_2BHSK)
    assert cache.capacity == 128
    assert np.array_equal(_contents(cache, TOY, 64), before)
    cache.reserve(cache.capacity)
    assert [cache.layer(layer, 0, 1)[0].shape[2] for layer in range(3)] == [128] * 3
    assert np.array_equal(_contents(cache, TOY, 64), before)


@pytest.mark.parametrize(("held", "tokens"), [(0, 1), (0, 130), (0, 256), (64, 65), (128, 250)])
def test_only_what_may_be_written_has_to_be_free(monkeypatch: pytest.MonkeyPatch, held: int, tokens: int) -> None:
    """Room for the next power of two of tokens had to be free, and to grow, all of the cache once more."""
    needed = cache_bytes(TOY, FLOAT32, 2, tokens - held)
    for free, fits in ((needed, True), (needed - 1, False)):
        cache = KVCache(TOY, FLOAT32, 2, step=64)
        monkeypatch.setattr(memory, "available_bytes", lambda: None)
        cache.reserve(max(1, held))
        cache.lengths = [held, 0]
        cache._layers_2BHSK = [block[..., :held, :].copy() for block in cache._layers_2BHSK]
        monkeypatch.setattr(memory, "available_bytes", lambda free=free: free)
        if fits:
            cache.reserve(tokens)
        else:
            with pytest.raises(OutOfMemoryError, match=f"a cache of 2 x {tokens} tokens needs about"):
                cache.reserve(tokens)


def test_a_session_of_either_engine_asks_for_the_tokens_of_its_request(
    backend: str, make_decoder: DecoderMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder()[2]
    monkeypatch.setattr(memory, "available_bytes", lambda: cache_bytes(TOY, FLOAT32, 3, 130))
    session = decoder.session(3, 130)
    monkeypatch.undo()
    session.prefill([np.ones((length, 64), np.float32) for length in (3, 130, 70)], Deadline())
    monkeypatch.setattr(memory, "available_bytes", lambda: cache_bytes(TOY, FLOAT32, 3, 130) - 1)
    with pytest.raises(OutOfMemoryError, match="a cache of 3 x 130 tokens"):
        decoder.session(3, 130)


@given(st.lists(st.integers(1, 256), min_size=1, max_size=60))
@settings(deadline=None)
def test_prompts_go_together_up_to_a_bound(lengths: list[int]) -> None:
    """A batch of 600 questions went through the decoder at once, which took 1.2 GiB for activations alone."""
    rows = [np.full((length, 2), number + 1, np.float32) for number, length in enumerate(lengths)]
    seen = 0
    for first, embeds_BtD, found in pad_prompts(rows, FLOAT32):
        assert (first, found) == (seen, lengths[first : first + len(found)])
        assert embeds_BtD.shape[0] * embeds_BtD.shape[1] <= 2048
        for row, padded in zip(rows[first:], embeds_BtD, strict=False):
            assert np.array_equal(padded[: len(row)], row)
            assert not padded[len(row) :].any()
        seen += len(found)
    assert seen == len(lengths)


def test_a_batch_beyond_the_bound_equals_one_by_one(
    make_decoder: DecoderMaker, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = make_decoder()[2]
    rows = [rng.normal(size=(length, 64)).astype(np.float32) for length in (9, 17, 1, 20, 12)]
    monkeypatch.setattr(host_cache, "_PADDED_TOKENS", 40)
    together = decoder.session(5, 21)
    found = [together.prefill(rows, Deadline()), together.step(np.ones((5, 64), np.float32))]
    for number, row in enumerate(rows):
        alone = decoder.session(1, 21)
        expected = [alone.prefill([row], Deadline()), alone.step(np.ones((1, 64), np.float32))]
        assert all(np.allclose(a[number], b[0], atol=2e-4) for a, b in zip(found, expected, strict=True))


@_NEEDS_PROC
def test_pages_that_are_not_written_cost_nothing_and_all_go_back() -> None:
    """numpy asks for huge pages: what was written took what lies beside it, too. What it freed could stay."""
    text, before = preset("xgen-mm-vid").text, _resident_bytes()
    cache = KVCache(text, np.dtype(np.float16), 1, step=64)
    cache.reserve(640)
    whole = cache_bytes(text, np.dtype(np.float16), 1, 640)
    assert _resident_bytes() - before < whole // 20
    for layer in range(text.num_layers):
        for part in cache.layer(layer, 0, 1):
            part[:, :, :64] = 1
    assert _resident_bytes() - before < whole // 4
    cache.lengths = [64]
    del cache, part
    assert _resident_bytes() - before < whole // 20


def test_memory_that_the_system_refuses_is_our_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation that failed was a bare MemoryError."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    cache = KVCache(TOY, FLOAT32, 1, step=64)
    monkeypatch.setattr(mmap, "mmap", refuse)
    with pytest.raises(OutOfMemoryError, match=r"refuses 2\.45 MiB of memory.*Cannot allocate memory"):
        cache.reserve(10_000)
