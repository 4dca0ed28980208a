"""A conversation with a kept cache equals the same conversation computed from nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from toy_bundle import toy_table
from toy_graphs import Weights, reference_logits

from blip3v.bundle import open_bundle
from blip3v.errors import CancelledError, RequestError, UsageError
from blip3v.runtime import CancelToken, GenerationOptions, VideoLM, VideoTokens
from blip3v.text import Message, build_prompt, continue_prompt, splice

QUESTIONS = ["Which way?", "And then?", "Why is that?", "Sure?"]


def _whole(bundle_path: Path, video: VideoTokens, turns: list[tuple[str, tuple[int, ...]]]) -> list[tuple[int, ...]]:
    """Greedy answers of each turn by the formula without a cache, given the turns before it."""
    bundle = open_bundle(bundle_path)
    table, weights = toy_table(bundle.config), Weights.random(bundle.config.text)
    answers: list[tuple[int, ...]] = []
    prompt = build_prompt(bundle.tokenizer, bundle.chat_template, bundle.generation, [Message("user", turns[0][0])])
    embeds = splice(table[prompt.ids], prompt.image_position, video.tokens)
    for number, (question, given) in enumerate(turns):
        if number:
            more = [
                bundle.tokenizer.end_id,
                *continue_prompt(bundle.tokenizer, bundle.chat_template, question),
            ]
            embeds = np.concatenate([embeds, table[np.array([*turns[number - 1][1], *more])]])
        # Teacher forcing: every token of this answer must be the most likely one after those before it.
        logits = reference_logits(
            bundle.config.text, weights, np.concatenate([embeds, table[np.array(given, dtype=int)]])
        )
        best = logits[len(embeds) - 1 :].argmax(-1)
        answers.append(tuple(int(token) for token in best[: len(given)]))
    return answers


@pytest.mark.parametrize("stop", [(), ("e",)], ids=["length", "stop-text"])
@pytest.mark.parametrize("count", [1, 2, 7])
def test_turns_equal_the_whole_conversation(
    bundle_path: Path, lm: VideoLM, video: VideoTokens, count: int, stop: tuple[str, ...]
) -> None:
    with lm.chat(video) as chat:
        answers = [
            chat.ask(question, options=GenerationOptions(max_new_tokens=count, stop=stop)) for question in QUESTIONS
        ]
        assert [question for question, _ in chat.turns] == QUESTIONS
    given = [(question, answer.token_ids) for question, answer in zip(QUESTIONS, answers, strict=True)]
    assert _whole(bundle_path, video, given) == [ids for _, ids in given]
    prompts = [answer.usage.num_prompt_tokens for answer in answers]
    assert prompts == sorted(prompts)


def test_a_first_turn_is_an_ask(lm: VideoLM, video: VideoTokens) -> None:
    with lm.chat(video) as chat:
        assert chat.ask("Why?").token_ids == lm.ask(video, "Why?").token_ids


def test_two_conversations_do_not_mix(lm: VideoLM, video: VideoTokens, film: np.ndarray) -> None:
    with lm.chat(video) as one, lm.chat(film[::-1].copy()) as two:
        mixed = [(one.ask(question).token_ids, two.ask(question).token_ids) for question in QUESTIONS]
    for number, source in ((0, video), (1, film[::-1].copy())):
        with lm.chat(source) as alone:
            assert [alone.ask(question).token_ids for question in QUESTIONS] == [pair[number] for pair in mixed]


@pytest.mark.parametrize("way", ["close", "cancel", "refuse", "unread"])
@pytest.mark.parametrize("before", [0, 1], ids=["first-turn", "second-turn"])
def test_a_turn_that_does_not_end_is_taken_back(lm: VideoLM, video: VideoTokens, way: str, before: int) -> None:
    options = GenerationOptions(max_new_tokens=6, ignore_stop_token=True)
    with lm.chat(video) as chat:
        for question in QUESTIONS[:before]:
            chat.ask(question, options=options)
        if way == "close":
            with chat.stream("Something else, and long enough to matter?", options=options) as stream:
                next(stream)
                next(stream)
        elif way == "cancel":
            cancel = CancelToken()
            stream = chat.stream("Something else?", options=options, cancel=cancel)
            next(stream)
            cancel.cancel()
            with pytest.raises(CancelledError):
                stream.read()
        elif way == "refuse":
            with pytest.raises(RequestError, match="the context has 256"):
                chat.ask("why " * 200, options=options)
        else:
            chat.stream("Something else?", options=options)
        found = [chat.ask(question, options=options).token_ids for question in QUESTIONS[before:]]
    with lm.chat(video) as plain:
        expected = [plain.ask(question, options=options).token_ids for question in QUESTIONS]
    assert found == expected[before:]


def test_a_turn_whose_pieces_were_all_read_stays_even_if_the_stream_is_closed(lm: VideoLM, video: VideoTokens) -> None:
    options = GenerationOptions(max_new_tokens=3, ignore_stop_token=True)
    with lm.chat(video) as chat:
        with chat.stream("Why?", options=options) as stream:
            for _ in range(3):
                next(stream)
        assert len(chat.turns) == 1


def test_one_turn_runs_at_a_time(lm: VideoLM, video: VideoTokens) -> None:
    with lm.chat(video) as chat:
        late = chat.stream("Late?")
        with chat.stream("Why?") as stream:
            next(stream)
            with pytest.raises(RequestError, match="answering another question"):
                chat.ask("Now?")
            stream.read()
        with pytest.raises(RequestError, match="has changed"):
            late.read()


def test_a_conversation_grows_to_the_context_and_not_beyond(lm: VideoLM, video: VideoTokens) -> None:
    options = GenerationOptions(max_new_tokens=20, ignore_stop_token=True)
    with lm.chat(video) as chat:
        used, cost = 0, 0
        while used + cost <= 256:
            answer = chat.ask("Why?", options=options)
            before, used = used, answer.usage.num_prompt_tokens + answer.usage.num_new_tokens
            cost = used - before if before else 0
        with pytest.raises(RequestError, match="the context has 256"):
            chat.ask("Why?", options=options)
        assert used <= 256
        assert len(chat.turns) > 2


def test_a_closed_conversation_refuses(lm: VideoLM, video: VideoTokens) -> None:
    chat = lm.chat(video)
    stream = chat.stream("Why?")
    chat.close()
    chat.close()
    with pytest.raises(UsageError, match="closed"):
        chat.ask("Why?")
    with pytest.raises(UsageError, match="closed"):
        stream.read()


def test_a_conversation_that_is_closed_during_a_turn_lets_the_turn_end(lm: VideoLM, video: VideoTokens) -> None:
    chat = lm.chat(video)
    stream = chat.stream("Why?")
    next(stream)
    chat.close()
    with pytest.raises(UsageError, match="closed"):
        chat.ask("Now?")
    assert stream.read() == chat.turns[0][1]


def test_only_the_first_turn_pays_for_the_video(lm: VideoLM, film: np.ndarray) -> None:
    with lm.chat(film) as chat:
        first, second = chat.ask("Why?"), chat.ask("How?")
    assert first.timings.encode_s > 0
    assert second.timings.encode_s == 0
    assert second.usage.num_video_tokens == 8
