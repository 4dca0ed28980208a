"""Text of an answer from scripted tokens: stop texts across token borders, white space, split characters."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blip3v.bundle import open_bundle
from blip3v.runtime import GenerationOptions, VideoTokens
from blip3v.runtime.generation import AnswerWriter
from blip3v.runtime.request import Request
from blip3v.text import Tokenizer, train_tokenizer

_TOKENIZER = Tokenizer(train_tokenizer(["ball"], vocab_size_base=300))


def _writer(max_new_tokens: int, **options: object) -> AnswerWriter:
    nothing = np.zeros((1, 64), np.float32)
    asked = GenerationOptions(**options)  # type: ignore[arg-type]
    return AnswerWriter(_TOKENIZER, Request(VideoTokens(nothing, (), "toy"), nothing, 0, max_new_tokens, asked))


def _write(text: str, **options: object) -> tuple[AnswerWriter, list[str]]:
    """Feeds the bytes of ``text`` as single tokens, then the stop token."""
    count = len(text.encode()) + 1
    writer = _writer(count, **options)
    pieces = []
    for token_id in [*(3 + byte for byte in text.encode()), _TOKENIZER.end_id]:
        logits = np.zeros(303, np.float32)
        logits[token_id] = 1
        pieces.append(writer.push(logits).text)
        if writer.finish_reason is not None:
            break
    return writer, pieces


def test_bytes_have_the_ids_that_these_tests_use(bundle_path: Path) -> None:
    assert _TOKENIZER.piece(3 + ord("a")) == b"a"
    assert open_bundle(bundle_path).tokenizer.piece(3 + ord("a")) == b"a"


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("left then right", (" then",), "left"),
        ("left then right", ("right", "then"), "left"),
        ("left", ("right",), "left"),
        ("aab", ("ab",), "a"),
        ("aaab", ("aab",), "a"),
        ("abababc", ("ababc",), "ab"),
        ("stop", ("stop",), ""),
        ("one\ntwo", ("\n",), "one"),
        ("\n\none", ("\n",), ""),
        ("  one  two  ", (), "one  two"),
        ("one sto", ("stop",), "one sto"),
        ("grüß 😀 dich", ("😀",), "grüß"),
        ("grüß 😀", (), "grüß 😀"),
        ("", (), ""),
        ("a b c", ("b c", "b"), "a"),
    ],
)
def test_stop_texts_and_white_space(text: str, stop: tuple[str, ...], expected: str) -> None:
    writer, pieces = _write(text, stop=stop)
    assert writer.text == "".join(pieces) == expected
    assert writer.finish_reason == "stop"


@given(st.text("ab \n", max_size=30), st.lists(st.text("ab \n", min_size=1, max_size=4), max_size=3))
@settings(deadline=None)
def test_any_text_is_cut_before_its_first_stop_text(text: str, stops: list[str]) -> None:
    """A stop text counts when its last character is there; of several at once the longest answer is not waited for."""
    expected = text
    for end in range(len(text) + 1):
        starts = [text.find(stop, 0, end) for stop in stops if stop in text[:end]]
        if starts:
            expected = text[: min(starts)]
            break
    writer, pieces = _write(text, stop=tuple(stops))
    assert writer.text == "".join(pieces) == expected.strip()


def test_text_comes_out_as_soon_as_it_is_certain() -> None:
    _, pieces = _write("no stop", stop=("stop",))
    assert pieces == ["n", "o", "", "", "", "", ""]
    _, pieces = _write("no story", stop=("stop",))
    assert pieces == ["n", "o", "", "", "", "", " stor", "y", ""]


def test_a_broken_character_at_the_end_is_marked() -> None:
    writer = _writer(1)
    logits = np.zeros(303, np.float32)
    logits[3 + 0xF0] = 1
    assert writer.push(logits).text == "\ufffd"
    assert writer.finish_reason == "length"


def test_a_stop_text_that_only_the_end_completes_is_a_stop() -> None:
    writer = _writer(1, stop=("\ufffd",))
    logits = np.zeros(303, np.float32)
    logits[3 + 0xF0] = 1
    assert writer.push(logits).text == ""
    assert writer.finish_reason == "stop"


def test_the_stop_token_can_be_ignored() -> None:
    writer = _writer(2, ignore_stop_token=True)
    logits = np.zeros(303, np.float32)
    logits[_TOKENIZER.end_id] = 1
    assert writer.push(logits).token_id == _TOKENIZER.end_id
    assert writer.finish_reason is None
    writer.push(logits)
    assert str(writer.finish_reason) == "length"
    assert writer.text == ""
