"""Speculation: the answer is the one of plain decoding, whichever guesses are right; and where guesses come from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v.errors import CancelledError, RequestError
from blip3v.runtime import Answer, CancelToken, GenerationOptions, VideoLM, VideoTokens, speculation
from blip3v.runtime.speculation import Drafter, NgramCounts

QUESTION = "What moves first, the ball or the square?"
GUESSES = 5
_OPTIONS = {
    "greedy": GenerationOptions(ignore_stop_token=True),
    "sampled": GenerationOptions(temperature=1.0, top_k=50, seed=5, repetition_penalty=1.2, logprobs=2),
    "short": GenerationOptions(max_new_tokens=4, ignore_stop_token=True),
    "one token": GenerationOptions(max_new_tokens=1),
}


class Guesses:
    """Proposes the tokens of a known answer, of which every ``period``-th from ``wrong`` on is another one.

    Args:
        token_ids: the answer.
        wrong: None: none is.
        period: of the wrong ones.
    """

    def __init__(self, token_ids: Sequence[int], wrong: int | None = None, period: int = 6) -> None:
        beyond = [7] * GUESSES  # guesses that come after its end
        self._ids = [*token_ids, *beyond]
        self._wrong = set() if wrong is None else set(range(wrong, len(self._ids), period))

    def install(self, patch: pytest.MonkeyPatch) -> None:
        patch.setattr(speculation.Drafter, "propose", lambda _, token_ids, limit: self(token_ids, limit))

    def __call__(self, token_ids: Sequence[int], limit: int) -> list[int]:
        assert limit <= GUESSES
        at = range(len(token_ids), len(token_ids) + limit)
        return [(self._ids[i] + (i in self._wrong)) % 300 for i in at if i < len(self._ids)]


def _speculative(options: GenerationOptions) -> GenerationOptions:
    return dataclasses.replace(options, num_speculative_tokens=GUESSES)


def _check_same(found: Answer, plain: Answer) -> None:
    assert found.token_ids == plain.token_ids
    assert (found.text, found.finish_reason, found.usage) == (plain.text, plain.finish_reason, plain.usage)
    steps = found.timings
    assert steps.num_steps + steps.num_accepted_tokens == plain.timings.num_steps
    for one, other in zip(found.logprobs or (), plain.logprobs or (), strict=True):
        assert one.token_id == other.token_id
        assert abs(one.logprob - other.logprob) < 1e-4


@pytest.mark.parametrize("wrong", [None, 0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", _OPTIONS)
def test_an_answer_is_that_of_plain_decoding(
    lm: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch, kind: str, wrong: int | None
) -> None:
    options = _OPTIONS[kind]
    with lm.stream(video, QUESTION, options=options) as stream:
        expected = list(stream)
    plain = stream.answer
    assert plain.timings.num_draft_tokens == plain.timings.num_accepted_tokens == 0
    Guesses(plain.token_ids, wrong).install(monkeypatch)
    with lm.stream(video, QUESTION, options=_speculative(options)) as stream:
        assert list(stream) == expected
    _check_same(stream.answer, plain)
    if wrong is None and len(plain.token_ids) > 2:
        assert stream.answer.timings.num_steps == -(-plain.timings.num_steps // (GUESSES + 1))


@pytest.mark.parametrize("wrong", [None, 3, 6])
def test_a_stop_text_within_accepted_tokens_ends_the_answer(
    lm: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch, wrong: int | None
) -> None:
    whole = lm.ask(video, QUESTION, options=GenerationOptions(ignore_stop_token=True))
    for start in range(1, len(whole.text) - 2, 3):
        options = GenerationOptions(ignore_stop_token=True, stop=(whole.text[start : start + 2],))
        plain = lm.ask(video, QUESTION, options=options)
        with monkeypatch.context() as patch:
            Guesses(whole.token_ids, wrong).install(patch)
            _check_same(lm.ask(video, QUESTION, options=_speculative(options)), plain)


@pytest.mark.parametrize("at", [1, 2, 5, 6, 9])
def test_a_stop_token_within_accepted_tokens_ends_the_answer(
    lm: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    whole = lm.ask(video, QUESTION, options=GenerationOptions(ignore_stop_token=True)).token_ids
    with lm._owner.lease() as model:
        monkeypatch.setattr(type(model.tokenizer), "end_id", property(lambda _: whole[at]))
    plain = lm.ask(video, QUESTION)
    assert plain.finish_reason == "stop"
    Guesses(whole).install(monkeypatch)
    _check_same(lm.ask(video, QUESTION, options=_speculative(GenerationOptions())), plain)


@pytest.mark.parametrize("wrong", [None, 2, 5])
@pytest.mark.parametrize("count", [2, 7])
def test_a_conversation_goes_on_after_speculative_turns(
    lm: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch, wrong: int | None, count: int
) -> None:
    options = GenerationOptions(max_new_tokens=count, stop=("e",))
    questions = ["Which way?", "And then?", "Why is that?"]
    with lm.chat(video) as chat:
        plain = [chat.ask(question, options=options) for question in questions]
    with lm.chat(video) as chat:
        for question, expected in zip(questions, plain, strict=True):
            with monkeypatch.context() as patch:
                Guesses(expected.token_ids, wrong).install(patch)
                _check_same(chat.ask(question, options=_speculative(options)), expected)


@pytest.mark.parametrize("way", ["close", "cancel"])
@pytest.mark.parametrize("num_read", [1, 2, 4, 7])
def test_a_turn_that_is_left_in_the_middle_is_taken_back(
    lm: VideoLM, video: VideoTokens, monkeypatch: pytest.MonkeyPatch, num_read: int, way: str
) -> None:
    options = GenerationOptions(max_new_tokens=12, ignore_stop_token=True)
    with lm.chat(video) as chat:
        expected = [chat.ask(question, options=options).token_ids for question in ("Which way?", "And then?")]
    cancel = CancelToken()
    with lm.chat(video) as chat:
        chat.ask("Which way?", options=options)
        Guesses(expected[1]).install(monkeypatch)
        with chat.stream("And then?", options=_speculative(options), cancel=cancel) as stream:
            assert [next(stream).token_id for _ in range(num_read)] == list(expected[1][:num_read])
            if way == "cancel":
                cancel.cancel()
                with pytest.raises(CancelledError):
                    stream.read()
        assert len(chat.turns) == 1
        assert chat.ask("And then?", options=_speculative(options)).token_ids == expected[1]


def test_a_stream_goes_on_after_its_model_was_closed(backend: str, bundle_path: Path, video: VideoTokens) -> None:
    options = GenerationOptions(num_speculative_tokens=GUESSES, ignore_stop_token=True)
    with VideoLM.open(bundle_path, backend=backend, threads=1) as own:
        expected = own.ask(video, QUESTION, options=options).token_ids
        stream = own.stream(video, QUESTION, options=options)
        next(stream)
    assert stream.read().token_ids == expected


def test_what_was_answered_before_is_guessed(backend: str, bundle_path: Path, video: VideoTokens) -> None:
    options = GenerationOptions(num_speculative_tokens=8, ignore_stop_token=True)
    with VideoLM.open(bundle_path, backend=backend, threads=1) as own:
        first, second = (own.ask(video, QUESTION, options=options) for _ in range(2))
    assert second.token_ids == first.token_ids
    assert second.timings.num_accepted_tokens > 5
    assert second.timings.num_steps < first.timings.num_steps


def test_a_cache_of_exactly_prompt_and_answer_is_enough(
    backend: str, bundle_path: Path, video: VideoTokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses take no room of their own: none is made that could not become a part of the answer."""
    options = GenerationOptions(max_new_tokens=9, ignore_stop_token=True)
    with VideoLM.open(bundle_path, backend=backend, threads=1) as own:
        plain = own.ask(video, QUESTION, options=options)
        with own._owner.lease() as model:
            room = (plain.usage.num_prompt_tokens + 9) * model.decoder.token_bytes
    with VideoLM.open(bundle_path, backend=backend, threads=1, max_cache_bytes=room) as own:
        Guesses(plain.token_ids).install(monkeypatch)
        with own._owner.lease() as model, monkeypatch.context() as patch:
            verify, most = type(model.decoder.session(1, 1)).verify, 0

            def recorded(session: object, embeds_tD: np.ndarray) -> np.ndarray:
                nonlocal most
                found = verify(session, embeds_tD)  # type: ignore[arg-type]
                most = max(most, *session.lengths)  # type: ignore[attr-defined]
                return found

            patch.setattr(type(model.decoder.session(1, 1)), "verify", recorded)
            _check_same(own.ask(video, QUESTION, options=_speculative(options)), plain)
        assert plain.usage.num_prompt_tokens < most < plain.usage.num_prompt_tokens + 9


def test_a_bundle_of_an_earlier_version_answers_and_does_not_speculate(
    backend: str, tmp_path: Path, lm: VideoLM, video: VideoTokens
) -> None:
    config = toy_config()
    old = write_bundle(tmp_path / "old", config, Weights.random(config.text), one_position=True)
    expected = lm.ask(video, QUESTION)
    with VideoLM.open(old, backend=backend, threads=1) as own:
        assert own.ask(video, QUESTION).token_ids == expected.token_ids
        refused = pytest.raises(RequestError, match=r"num_speculative_tokens is 5.*run `blip3v export` again")
        with refused:
            own.ask("no file", QUESTION, options=_speculative(GenerationOptions()))
        with own.chat(video) as chat, refused:
            chat.ask(QUESTION, options=_speculative(GenerationOptions()))


def test_a_batch_is_not_speculated_on(lm: VideoLM, video: VideoTokens) -> None:
    with pytest.raises(RequestError, match="one answer at a time; leave out `num_speculative_tokens`"):
        lm.ask_batch([(video, QUESTION)], options=GenerationOptions(num_speculative_tokens=4))


def test_guesses_are_what_followed_the_same_two_tokens_in_the_prompt() -> None:
    drafter = Drafter(NgramCounts(), [1, 2, 3, 4, 5, 6, 9, 1])
    assert drafter.propose([2], 3) == [3, 4, 5]
    assert drafter.propose([2, 3, 4], 2) == [5, 6]
    assert drafter.propose([2, 3, 4, 8], 2) == []
    assert drafter.propose([2, 3, 4, 8, 2, 3], 9)[:1] == [4]


def test_guesses_end_where_they_are_unlikely() -> None:
    shared = NgramCounts()
    for first in range(20):  # 5 is always followed by 6, and 6 by anything
        shared.learn([first, 5, 6, 100 + first])
    assert Drafter(shared, [0]).propose([5], 4) == [6]


def test_an_answer_is_learned_when_it_is_complete() -> None:
    shared = NgramCounts()
    drafter = Drafter(shared, [9, 1])
    drafter.propose([2, 3], 4)
    assert Drafter(shared, [8, 1]).propose([2], 4) == []
    drafter.finish([2, 3, 4, 5])
    assert Drafter(shared, [8, 1]).propose([2], 2) == [3, 4]
    assert Drafter(shared, [8, 1]).propose([7, 4], 2) == [5]


def test_the_commonest_follower_wins_and_the_later_of_two() -> None:
    counts = NgramCounts()
    for token in (3, 4, 4, 3):
        counts.learn([1, 2, token])
    found = counts.likeliest((1, 2))
    assert found is not None
    assert found[0] == 3
    assert found[1] == pytest.approx(2 / 4.5)
    assert counts.likeliest((5, 6)) is None


def test_counts_stay_bounded_and_serve_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculation, "_MAX_CONTEXTS", 50)
    counts = NgramCounts()

    def use(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(50):
            counts.learn(rng.integers(0, 40, 12).tolist())
            for at in range(40):
                counts.likeliest((at, at))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use, range(4)))
    assert len(counts._followers) <= 50 + 2 * 12
