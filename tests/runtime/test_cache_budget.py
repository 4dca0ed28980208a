"""The sum of the caches in use stays within ``max_cache_bytes``, over streams, chats, batches and threads."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_graphs import toy_config

from blip3v.errors import OutOfMemoryError, UsageError
from blip3v.runtime import AnswerStream, Chat, GenerationOptions, VideoLM, VideoTokens, memory
from blip3v.runtime.cache_budget import CacheBudget, CacheShare, default_limit
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.generation import answer_together
from blip3v.runtime.host_cache import cache_bytes
from blip3v.runtime.request import checked_prompt

GIB = 2**30
LONG = GenerationOptions(max_new_tokens=12, ignore_stop_token=True, logprobs=2)
TOKEN_BYTES = cache_bytes(toy_config().text, np.dtype(np.float32), 1, 1)
QUESTIONS = ["Which way?", "What moves first, the ball or the square?", "Why?", "How many are there at the end?"]


@pytest.fixture(scope="module")
def small(backend: str, bundle_path: Path) -> Iterator[VideoLM]:
    """A VideoLM whose caches together may hold 2000 tokens."""
    with VideoLM.open(bundle_path, backend=backend, threads=1, max_cache_bytes=2000 * TOKEN_BYTES) as opened:
        yield opened


def _budget(lm: VideoLM) -> CacheBudget:
    with lm._owner.lease() as model:
        return model.caches


def test_kept_streams_are_refused_beyond_the_limit_with_the_numbers(small: VideoLM, video: VideoTokens) -> None:
    """300 of them took 1.2 GiB, and nothing ever refused the next."""
    budget, streams, refusals = _budget(small), [], []
    for _ in range(300):
        stream = small.stream(video, "Why?", options=LONG)
        try:
            next(stream)
            streams.append(stream)
        except OutOfMemoryError as error:
            refusals.append(str(error))
    assert 10 < len(streams) < 100
    assert len(streams) + len(refusals) == 300
    assert 0.8 * budget.limit_bytes < budget.in_use_bytes <= budget.limit_bytes
    assert "a cache of 1 x 39 tokens takes 29.2 KiB, 1.46 MiB are in use by other" in refusals[0]
    assert "all together may take 1.46 MiB; finish or close streams" in refusals[0]
    assert "a larger max_cache_bytes" in refusals[0]
    # Each way to end one makes room for the next.
    assert streams.pop().read().usage.num_new_tokens == 12
    streams[-1].close()
    del streams[-2:]
    replaced = [small.stream(video, "Why?", options=LONG) for _ in range(3)]
    assert all(next(stream) for stream in replaced)
    gc.disable()
    del stream, streams, replaced
    gc.enable()
    assert budget.in_use_bytes == 0


@pytest.mark.parametrize("way", ["read", "close", "drop", "with", "error"])
def test_what_a_stream_holds_is_returned(small: VideoLM, video: VideoTokens, way: str) -> None:
    stream, budget = small.stream(video, "Why?", options=LONG), _budget(small)
    assert budget.in_use_bytes == 0, "nothing is held before it begins"
    next(stream)
    assert budget.in_use_bytes == TOKEN_BYTES * _num_tokens(small, video, "Why?")
    if way == "read":
        stream.read()
    elif way == "close":
        stream.close()
    elif way == "with":
        with stream:
            next(stream)
    elif way == "error":
        with pytest.raises(RuntimeError):
            stream._pieces.throw(RuntimeError("from the engine"))
    del stream
    assert budget.in_use_bytes == 0


def _num_tokens(lm: VideoLM, video: VideoTokens, question: str) -> int:
    with lm._owner.lease() as model:
        return model.first_request(video, checked_prompt(model, question, LONG), LONG).num_tokens


def test_a_conversation_holds_what_it_has_written(small: VideoLM, video: VideoTokens) -> None:
    budget = _budget(small)
    with small.chat(video) as chat:
        answer = chat.ask("Why?", options=LONG)
        held = answer.usage.num_prompt_tokens + answer.usage.num_new_tokens - 1
        assert budget.in_use_bytes == held * TOKEN_BYTES
        stream = chat.stream("And then?", options=LONG)
        next(stream)
        assert budget.in_use_bytes > (held + 12) * TOKEN_BYTES
        stream.close()
        taken = budget.in_use_bytes
        assert held * TOKEN_BYTES <= taken
        # A turn that asks for less than an earlier one wrote, in a budget that is used up.
        with budget.take(1, (budget.limit_bytes - taken) // TOKEN_BYTES):
            assert chat.ask("Why?", options=GenerationOptions(max_new_tokens=1)).usage.num_new_tokens == 1
            assert budget.in_use_bytes <= budget.limit_bytes
    assert budget.in_use_bytes == 0


def test_conversations_share_the_limit_and_a_refused_turn_changes_nothing(small: VideoLM, video: VideoTokens) -> None:
    budget = _budget(small)
    chats: list[Chat] = []
    while budget.in_use_bytes < 0.95 * budget.limit_bytes:
        chats.append(small.chat(video))
        chats[-1].ask("Why?", options=LONG)
    before = budget.in_use_bytes
    long = GenerationOptions(max_new_tokens=150, ignore_stop_token=True)
    for chat in (chats[0], small.chat(video)):
        num_turns = len(chat.turns)
        with pytest.raises(OutOfMemoryError, match=r"may take 1\.46 MiB; finish or close streams") as refused:
            chat.ask("And then?", options=long)
        assert refused.value.__context__ is None
        assert (budget.in_use_bytes, len(chat.turns)) == (before, num_turns)
    for other in chats[1:]:
        other.close()
    assert chats[0].ask("And then?", options=long).usage.num_new_tokens == 150
    chats.clear()
    assert budget.in_use_bytes == 0


def test_a_batch_of_600_runs_in_parts_that_fit(
    small: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One ask_batch of 600 took 1.3 GiB: all rows at once, whatever that was."""
    budget, made = _budget(small), []
    with small._owner.lease() as model:
        session = model.decoder.session

        def counted(num_rows: int, num_tokens: int) -> Any:
            made.append((num_rows, num_tokens))
            assert num_rows * num_tokens * TOKEN_BYTES <= budget.in_use_bytes <= budget.limit_bytes
            return session(num_rows, num_tokens)

        monkeypatch.setattr(model.decoder, "session", counted)
    options = GenerationOptions(max_new_tokens=2, ignore_stop_token=True)
    answers = small.ask_batch([(video, QUESTIONS[i % 4]) for i in range(600)], options=options)
    assert sum(rows for rows, _ in made) == 600
    assert 10 < len(made) < 100
    assert budget.in_use_bytes == 0
    monkeypatch.undo()
    alone = [small.ask(video, question, options=options).token_ids for question in QUESTIONS]
    assert [answer.token_ids for answer in answers] == [alone[i % 4] for i in range(600)]


def test_parts_of_a_batch_give_the_answers_of_the_whole(backend: str, lm: VideoLM, video: VideoTokens) -> None:
    """Bit for bit on ONNX Runtime; OpenVINO adds in another order for another number of rows."""
    requests = [(video, QUESTIONS[i % 4]) for i in range(12)]
    whole = lm.ask_batch(requests, options=LONG)
    with lm._owner.lease() as model:
        prepared = [model.first_request(video, checked_prompt(model, question, LONG), LONG) for _, question in requests]
        with model.caches.take(0, 0) as rest:
            rest.resize(1, model.caches.limit_bytes // model.caches.token_bytes - 5 * 80)
            parts = answer_together(model, prepared, Deadline())
    for found, expected in zip(parts, whole, strict=True):
        assert found.token_ids == expected.token_ids
        assert found.logprobs is not None
        assert expected.logprobs is not None
        if backend == "onnxruntime":
            assert found.logprobs == expected.logprobs
        pairs = zip(found.logprobs, expected.logprobs, strict=True)
        assert all(abs(a.logprob - b.logprob) < 1e-4 for a, b in pairs)


def test_a_batch_whose_longest_question_does_not_fit_is_refused_before_it_begins(
    small: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = _budget(small)
    with budget.take(1, 1960), small._owner.lease() as model:
        monkeypatch.setattr(model.decoder, "session", lambda *sizes: pytest.fail("a part of it was computed"))
        with pytest.raises(OutOfMemoryError, match=r"a cache of 1 x \d+ tokens takes"):
            small.ask_batch([(video, "Why?"), (video, QUESTIONS[1])], options=LONG)
    assert budget.in_use_bytes == 0


@pytest.mark.parametrize(
    ("free_bytes", "context_bytes", "expected"),
    [(9 * GIB, GIB, 3 * GIB), (GIB, GIB, GIB), (0, 1000, 1000), (None, GIB, 2 * GIB), (None, 3 * GIB, 3 * GIB)],
    ids=["a-third", "one-context", "nothing-free", "not-told", "not-told-one-context"],
)
def test_the_default_limit(free_bytes: int | None, context_bytes: int, expected: int) -> None:
    assert default_limit(free_bytes, context_bytes) == expected


@pytest.mark.parametrize("backend", ["onnxruntime"], indirect=True)
def test_opening_takes_the_default_from_the_memory_that_is_free(
    backend: str, bundle_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 9 * GIB)
    with VideoLM.open(bundle_path, backend=backend, threads=1) as lm:
        assert (_budget(lm).limit_bytes, _budget(lm).token_bytes) == (3 * GIB, TOKEN_BYTES)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "1"], ids=str)
def test_a_limit_must_be_a_count(bundle_path: Path, value: Any) -> None:
    with pytest.raises(UsageError, match=r"max_cache_bytes is .*; a whole number of at least 1"):
        VideoLM.open(bundle_path, max_cache_bytes=value)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 40)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_the_sum_is_what_the_shares_hold_and_never_above_the_limit(moves: list[tuple[int, int, int]]) -> None:
    budget, shares, sizes = CacheBudget(1000, 10), {}, {}  # type: ignore[var-annotated]
    for key, rows, tokens in moves:
        if tokens == 0:
            shares.pop(key, None)
            sizes.pop(key, None)
        else:
            shares.setdefault(key, budget.take(0, 0))
            fits = sum(sizes.values()) - sizes.get(key, 0) + 10 * rows * tokens <= 1000
            if fits or 10 * rows * tokens <= sizes.get(key, 0):
                shares[key].resize(rows, tokens)
                sizes[key] = 10 * rows * tokens
            else:
                with pytest.raises(OutOfMemoryError):
                    shares[key].resize(rows, tokens)
        assert budget.in_use_bytes == sum(sizes.values()) <= 1000


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(0, 90), st.none() | st.integers(0, 2000))
@settings(deadline=None)
def test_as_many_rows_as_fit_and_room_for_any_later_one(tokens: list[int], in_use: int, free: int | None) -> None:
    budget = CacheBudget(1000, 10)
    with budget.take(1, in_use), budget.take(0, 0) as share:
        if max(tokens) > 100 - in_use:
            with pytest.raises(OutOfMemoryError):
                share.resize_to_rows(tokens, free)
            return
        rows = share.resize_to_rows(tokens, free)
        fitting = 100 - in_use if free is None else min(100 - in_use, free // 10)
        assert rows == 1 or rows * max(tokens[:rows]) <= fitting
        assert rows == len(tokens) or (rows + 1) * max(tokens[: rows + 1]) > fitting
        held = budget.in_use_bytes - 10 * in_use
        assert held >= 10 * max(tokens)
        assert held >= 10 * rows * max(tokens[:rows])


def test_a_closed_share_holds_nothing_again() -> None:
    """The garbage collector closed a share before the answer that it belonged to, which then set its size."""
    budget = CacheBudget(1000, 10)
    share = budget.take(1, 50)
    share.close()
    share.resize(1, 50)
    assert (budget.in_use_bytes, budget._held) == (0, {})


def test_conversations_dropped_in_a_cycle_return_all(small: VideoLM, video: VideoTokens) -> None:
    """After a few of them every question was refused, for caches that nobody had."""
    budget = _budget(small)
    gc.collect()
    before = budget.in_use_bytes
    for _ in range(5):
        chat = small.chat(video)
        chat.ask("Why?", options=LONG)
        stream = chat.stream("How?", options=LONG)
        next(stream)
        handler: dict[str, Any] = {"chat": chat, "stream": stream}
        handler["self"] = handler
        del chat, stream, handler
        gc.collect()
    assert budget.in_use_bytes == before


def test_a_batch_takes_what_is_free_and_goes_on(
    small: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused as a whole, though the budget had room and the memory had some."""
    pairs = [(video, question) for question in QUESTIONS * 5]
    expected = [answer.token_ids for answer in small.ask_batch(pairs, options=LONG)]
    monkeypatch.setattr(memory, "available_bytes", lambda: 180 * TOKEN_BYTES)
    assert [answer.token_ids for answer in small.ask_batch(pairs, options=LONG)] == expected


def test_a_first_turn_that_is_refused_holds_nothing(
    small: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shorter question, asked while the error was handled, was refused too."""
    budget = _budget(small)
    gc.collect()
    before = budget.in_use_bytes
    with small.chat(video) as chat, monkeypatch.context() as patched:
        patched.setattr(memory, "available_bytes", lambda: 0)
        try:
            chat.ask("Why?", options=LONG)
        except OutOfMemoryError:
            assert budget.in_use_bytes == before


def test_threads_never_take_more_than_the_limit() -> None:
    budget = CacheBudget(1000, 1)

    def work(seed: int) -> int:
        rng, taken = random.Random(seed), 0
        held: list[CacheShare] = []
        for _ in range(500):
            try:
                held.append(budget.take(1, rng.randint(1, 200)))
                taken += 1
            except OutOfMemoryError:
                del held[: rng.randint(0, 3)]
            assert budget.in_use_bytes <= 1000
        return taken

    with ThreadPoolExecutor(8) as pool:
        assert min(pool.map(work, range(8))) > 0
    assert budget.in_use_bytes == 0


def test_a_stream_in_a_cycle_is_collected_while_the_budget_is_locked(small: VideoLM, video: VideoTokens) -> None:
    """The garbage collector may end a stream in the thread that is taking a share: that must not wait for itself."""
    budget = _budget(small)
    stream = small.stream(video, "Why?", options=LONG)
    next(stream)
    cycle: list[AnswerStream | list[Any]] = [stream]
    cycle.append(cycle)
    del stream, cycle
    with budget._lock, small._owner._lock:
        gc.collect()
    assert budget.in_use_bytes == 0
