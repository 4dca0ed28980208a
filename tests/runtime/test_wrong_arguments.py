"""Arguments of a wrong type or value: each is refused with an error of ours that names it, before any work begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blip3v.errors import RequestError, UsageError
from blip3v.runtime import GenerationOptions, VideoLM, VideoTokens, video_lm

CLIP = Path(__file__).parents[2] / "examples" / "turn.mp4"
TOKENS = np.ones((8, 64), np.float32)
FRAMES = ((0, 0.0), (3, 0.12))
NUMBER_TOO_LONG = 10**5000  # too long to be written


@pytest.fixture
def unasked(lm: VideoLM, monkeypatch: pytest.MonkeyPatch) -> VideoLM:
    """A model that fails the test if it encodes a video."""

    def refuse(*arguments: object) -> VideoTokens:
        raise AssertionError("the video was encoded first")

    monkeypatch.setattr(video_lm, "encode_video", refuse)
    return lm


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (None, "has type NoneType"),
        (b"Why?", "has type bytes"),
        (5, "has type int"),
        (["Why?"], "has type list"),
        ("Why\ud800?", "has a lone surrogate at 3"),
        (" \n", "is empty"),
    ],
    ids=lambda value: ascii(value)[:20],
)
@pytest.mark.parametrize("way", ["ask", "stream", "ask_batch"])
def test_a_question_that_is_no_text(unasked: VideoLM, film: np.ndarray, way: str, question: Any, message: str) -> None:
    """An AttributeError or a UnicodeEncodeError from deep inside, after the video had been encoded."""
    with pytest.raises(RequestError, match=message):
        unasked.ask_batch([(film, question)]) if way == "ask_batch" else getattr(unasked, way)(film, question)


@pytest.mark.parametrize("question", [None, b"Why?", "Why\ud800?", ""], ids=ascii)
def test_a_turn_that_is_no_text(lm: VideoLM, video: VideoTokens, question: Any) -> None:
    """Of the first turn and of a later one; the conversation goes on."""
    options = GenerationOptions(max_new_tokens=2)
    with lm.chat(video) as chat:
        for _ in range(2):
            with pytest.raises(RequestError, match="the question"):
                chat.ask(question, options=options)
            chat.ask("Why?", options=options)
        assert len(chat.turns) == 2


@pytest.mark.parametrize("options", [{}, {"temperature": 1}, 0, "greedy", GenerationOptions], ids=str)
def test_options_of_another_type(unasked: VideoLM, film: np.ndarray, video: VideoTokens, options: Any) -> None:
    """An empty dict was taken for the defaults, others were an AttributeError."""
    calls: list[Callable[[], object]] = [
        lambda: unasked.ask(film, "Why?", options=options),
        lambda: unasked.stream(film, "Why?", options=options),
        lambda: unasked.ask_batch([(film, "Why?")], options=options),
        lambda: unasked.chat(video).ask("Why?", options=options),
    ]
    for call in calls:
        with pytest.raises(RequestError, match=r"options has type .*; GenerationOptions or None is expected"):
            call()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stop": 5}, "stop is 5; a tuple of texts"),
        ({"stop": None}, "stop is None"),
        ({"stop": b"."}, r"stop is b'\.'"),
        ({"stop": [".", b"."]}, "a tuple of texts"),
        ({"ignore_stop_token": "no"}, "ignore_stop_token is 'no'; True or False"),
        ({"temperature": 10**400}, "temperature is 1000"),
        ({"temperature": NUMBER_TOO_LONG}, "temperature is a int"),
        ({"max_new_tokens": NUMBER_TOO_LONG}, "max_new_tokens is a int; a whole number, 1 to 2147483647"),
        ({"top_k": None}, "top_k is None"),
        ({"seed": "a"}, "seed is 'a'"),
        ({"timeout_s": float("inf")}, "timeout_s is inf"),
        ({"timeout_s": "5"}, "timeout_s is '5'"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else ",".join(value),
)
def test_options_of_a_wrong_kind(values: dict[str, Any], message: str) -> None:
    """A TypeError, an OverflowError, or for the timeout one in the thread that was to keep it."""
    with pytest.raises(RequestError, match=message):
        GenerationOptions(**values)


def test_stops_may_come_from_a_generator() -> None:
    """The check used it up, and no stop text was left."""
    assert GenerationOptions(stop=(text for text in "ab")).stop == ("a", "b")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["start", "end"])
@pytest.mark.parametrize(
    "value", ["a", "1", True, float("nan"), float("inf"), -1, -0.5, 10**400, [1], b"1", 1j], ids=lambda v: repr(v)[:9]
)
def test_a_time_that_is_none(lm: VideoLM, film: np.ndarray, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"{name} is .*; a time from 0 s on is needed"):
        lm.encode(film, **{name: value})


@pytest.mark.parametrize(("start", "end"), [(1.0, 1.0), (2, 1), (None, 0)], ids=str)
def test_an_end_that_is_not_after_the_start(lm: VideoLM, film: np.ndarray, start: Any, end: Any) -> None:
    with pytest.raises(UsageError, match="not after start"):
        lm.encode(film, start=start, end=end)


def test_times_may_be_numbers_of_numpy(lm: VideoLM, film: np.ndarray) -> None:
    """They could not be sent to the decoder process."""
    times = {"start": np.float32(2), "end": np.int64(6), "fps": np.int64(1)}
    assert lm.encode(film, **times).frames == lm.encode(film, start=2, end=6, fps=1).frames


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (None, "requests has type NoneType"),
        (5, "requests has type int"),
        ("ab", "requests has type str"),
        ({"film.mp4": "Why?"}, "requests has type dict"),
        (["ab"], "request 0 is 'ab'"),
        ([("film.mp4",)], r"request 0 is \('film.mp4',\); a \(video, question\) pair"),
        ([("film.mp4", "Why?", 1)], "request 0 is"),
        ([("film.mp4", "Why?"), None], "request 1 is None"),
        ([("film.mp4", "Why?"), ("film.mp4", None)], "the question of request 1 has type NoneType"),
        ([("film.mp4", "")], "the question of request 0 is empty"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_batch_that_is_none(unasked: VideoLM, requests: Any, message: str) -> None:
    """A text of two letters was taken for a video and a question."""
    with pytest.raises(RequestError, match=message):
        unasked.ask_batch(requests)


def test_a_batch_may_come_from_a_generator(lm: VideoLM, video: VideoTokens) -> None:
    options = GenerationOptions(max_new_tokens=2)
    assert lm.ask_batch(iter([]), options=options) == []  # type: ignore[arg-type]
    pairs = ([video, question] for question in ("Why?", "How?"))
    assert len(lm.ask_batch(pairs, options=options)) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "tokens has type NoneType"),
        ({"tokens": TOKENS.tolist()}, "tokens has type list"),
        ({"tokens": TOKENS[0]}, r"tokens is float32 of shape \(64,\)"),
        ({"tokens": TOKENS[None]}, "of shape"),
        ({"tokens": TOKENS[:0]}, r"of shape \(0, 64\)"),
        ({"tokens": TOKENS.astype(np.float64)}, "tokens is float64"),
        ({"tokens": TOKENS.astype(np.int64)}, "tokens is int64"),
        ({"tokens": TOKENS.astype(object)}, "tokens is object"),
        ({"frames": None}, "frames is None"),
        ({"frames": [(0, 0.0)]}, "frames is "),
        ({"frames": ((0, 0.0), 5)}, "frames is "),
        ({"frames": (("a", 0.0),)}, "frames is "),
        ({"frames": ((0, "a"),)}, "frames is "),
        ({"encoder": None}, "encoder is None"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_video_tokens_of_another_form(change: dict[str, Any], message: str) -> None:
    """They were accepted, and failed inside the first request, or when its answer was printed."""
    values: dict[str, Any] = {"tokens": TOKENS, "frames": FRAMES, "encoder": "abc"}
    with pytest.raises(RequestError, match=message):
        VideoTokens(**(values | change))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_video_tokens_that_are_not_finite(lm: VideoLM, video: VideoTokens, value: float) -> None:
    """The error blamed the model's weights."""
    tokens = video.tokens.copy()
    tokens[3, 5] = value
    broken = dataclasses.replace(video, tokens=tokens)
    calls: list[Callable[[], object]] = [
        lambda: lm.ask(broken, "Why?"),
        lambda: lm.ask_batch([(video, "Why?"), (broken, "Why?")]),
        lambda: lm.chat(broken).ask("Why?"),
    ]
    for call in calls:
        with pytest.raises(RequestError, match="video tokens hold values that are not finite; encode the video again"):
            call()


def test_video_tokens_are_read_only(lm: VideoLM, film: np.ndarray, tmp_path: Path) -> None:
    """Whoever wrote into them changed every later answer, and the caller's array was shared in the same way."""
    encoded = lm.encode(film)
    encoded.save(tmp_path / "x")
    own = TOKENS.copy()
    made = VideoTokens(own, FRAMES, "abc")
    for video in (encoded, VideoTokens.load(tmp_path / "x"), made, made.without_timings()):
        with pytest.raises(ValueError, match="read-only"):
            video.tokens[0, 0] = 5
    own[0, 0] = 5
    assert made.tokens[0, 0] == 1
    assert made.without_timings().tokens is made.tokens  # not copied once more


@pytest.mark.parametrize("path", [None, 5, b"bundle", "", "a\0b"], ids=repr)
def test_a_path_that_is_none(path: Any) -> None:
    for call in (VideoLM.open, VideoLM.estimate):
        with pytest.raises(UsageError, match=r"path is .*; the path of a folder is expected"):
            call(path)


@pytest.mark.parametrize("backend", [None, 5, b"openvino"], ids=repr)
def test_a_back_end_that_is_no_name(bundle_path: Path, backend: Any) -> None:
    with pytest.raises(UsageError, match="backend is "):
        VideoLM.open(bundle_path, backend=backend)


def test_limits_of_another_type(bundle_path: Path) -> None:
    with pytest.raises(UsageError, match="limits has type dict; VideoLimits or None is expected"):
        VideoLM.open(bundle_path, limits={"max_bytes": 5})  # type: ignore[arg-type]


@pytest.mark.parametrize("cancel", [True, "now", object], ids=str)
def test_what_cannot_cancel(unasked: VideoLM, film: np.ndarray, cancel: Any) -> None:
    with pytest.raises(RequestError, match=r"cancel has type .*; a CancelToken or None is expected"):
        unasked.ask(film, "Why?", cancel=cancel)
    with pytest.raises(RequestError, match="cancel has type"):
        unasked.encode(film, cancel=cancel)


@pytest.mark.parametrize("timeout_s", [0, -1, "5", float("nan"), float("inf"), True], ids=str)
def test_a_time_limit_of_encode(unasked: VideoLM, film: np.ndarray, timeout_s: Any) -> None:
    with pytest.raises(RequestError, match=r"timeout_s is .*; a number of seconds above 0 is expected"):
        unasked.encode(film, timeout_s=timeout_s)


@pytest.mark.parametrize("name", ["threads", "max_context", "max_cache_bytes"])
@pytest.mark.parametrize("value", [10**5000, -(10**5000)], ids=["huge", "hugely-negative"])
def test_a_number_too_long_to_write_is_refused_in_words(bundle_path: Path, name: str, value: int) -> None:
    """Python refuses to write such a number, so that the message itself raised a ValueError."""
    if name == "max_cache_bytes" and value > 0:
        pytest.skip("any bound above the memory is as good as none")
    with pytest.raises(UsageError, match=f"{name} is "):
        VideoLM.open(bundle_path, **{name: value})  # type: ignore[arg-type]


def test_tokens_on_memory_that_somebody_may_change_are_copied(video: VideoTokens) -> None:
    """A read-only view of a writable array was kept as it was."""
    base = video.tokens.copy()
    view = base.view()
    view.flags.writeable = False
    kept = dataclasses.replace(video, tokens=view)
    base[:] = 0
    assert np.array_equal(kept.tokens, video.tokens)
    assert not kept.tokens.flags.writeable


def test_a_stream_belongs_to_one_thread(lm: VideoLM, video: VideoTokens) -> None:
    """It was a ValueError of Python's: generator already executing."""
    stream: Any = lm.stream(video, "Why?")
    stream._pieces = (stream.close() for _ in range(1))
    with pytest.raises(RequestError, match="another thread is reading this stream"):
        next(stream)
