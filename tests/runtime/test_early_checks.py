"""What costs nothing is checked before the video is touched, and before a graph is opened."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from blip3v.bundle import open_bundle
from blip3v.errors import RequestError, UsageError
from blip3v.runtime import GenerationOptions, VideoLM, opening, video_encoding
from blip3v.runtime.request import checked_prompt

LONG = GenerationOptions(max_new_tokens=250)


@pytest.fixture
def no_video(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_clip(*arguments: Any, **further: Any) -> None:
        raise AssertionError("the video was loaded first")

    monkeypatch.setattr(video_encoding, "load_clip", load_clip)


@pytest.mark.parametrize(
    ("question", "options", "says"),
    [
        (" ", GenerationOptions(), "empty"),
        ("<|end|>", GenerationOptions(), "special token"),
        ("why " * 400, GenerationOptions(), "the context has 256"),
        ("Why?", LONG, "250 new ones"),
    ],
    ids=["empty", "special token", "long", "long answer"],
)
@pytest.mark.usefixtures("no_video")
def test_a_question_is_checked_before_its_video(
    lm: VideoLM, film: np.ndarray, question: str, options: GenerationOptions, says: str
) -> None:
    """A video of a minute was decoded and encoded before an empty question was refused."""
    for call in (
        lambda: lm.ask(film, question, options=options),
        lambda: lm.stream(film, question, options=options),
        lambda: lm.ask_batch([(film, "Why?"), (film, question)], options=options),
    ):
        with pytest.raises(RequestError, match=says):
            call()


def test_a_bundle_checks_a_question_like_the_opened_model(lm: VideoLM, bundle_path: Any, film: np.ndarray) -> None:
    bundle = open_bundle(bundle_path)
    checked_prompt(bundle, "Why?", GenerationOptions())
    for question, options in ((" ", GenerationOptions()), ("<|end|>", GenerationOptions()), ("Why?", LONG)):
        with pytest.raises(RequestError) as early:
            checked_prompt(bundle, question, options)
        with pytest.raises(RequestError) as late:
            lm.ask(film, question, options=options)
        assert str(early.value) == str(late.value)


@pytest.mark.parametrize(
    "values",
    [
        {"backend": "banana"},
        {"backend": "decoder=banana"},
        {"device": "banana"},
        {"threads": 0},
        {"max_context": 0},
        {"max_context": 10**6},
    ],
    ids=str,
)
def test_options_are_checked_before_a_graph_is_opened(
    bundle_path: Any, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def graph_files(*arguments: Any) -> None:
        raise AssertionError("the graphs came first")

    monkeypatch.setattr(opening, "graph_files", graph_files)
    with pytest.raises(UsageError):
        VideoLM.open(bundle_path, **values)
