from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import tokenizers
from bench_samples import sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from blip3v.bench import Sample
from blip3v.bench.measure import question_of_length, take_turns
from blip3v.errors import RequestError
from blip3v.text import Tokenizer, train_tokenizer


def test_subjects_take_turns_and_the_warm_up_is_discarded() -> None:
    order: list[str] = []
    clock: Iterator[int] = iter(range(100))

    def subject(name: str) -> Callable[[], Sample]:
        def take() -> Sample:
            order.append(name)
            return sample(next(clock))

        return take

    done: list[tuple[int, int]] = []
    found = take_turns(
        [subject(name) for name in "ABCD"], warmup=2, repetitions=3, progress=lambda *counts: done.append(counts)
    )
    assert "".join(order) == "ABCD" * 5
    assert [[one.file_decode_s for one in samples] for samples in found] == [
        [8, 12, 16],
        [9, 13, 17],
        [10, 14, 18],
        [11, 15, 19],
    ]
    assert done == [(count, 20) for count in range(1, 21)]


def test_the_parts_of_a_sample_add_up() -> None:
    one = sample()
    assert one.language_model_s == 19.5
    assert one.per_token_s == 0.5
    assert one.other_s == 0.5


@pytest.fixture(scope="session")
def film_tokenizer(tokenizer_json: str) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(tokenizer_json))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(num_tokens=st.integers(1, 64))
def test_the_question_has_exactly_the_wanted_number_of_tokens(film_tokenizer: Tokenizer, num_tokens: int) -> None:
    assert len(film_tokenizer.encode(question_of_length(film_tokenizer, num_tokens))) == num_tokens


def test_the_question_is_film_questions(film_tokenizer: Tokenizer) -> None:
    text = question_of_length(film_tokenizer, 32)
    assert "? " in text
    assert " the " in text
    assert not text.endswith("??")
    assert text == question_of_length(film_tokenizer, 32)


@pytest.mark.parametrize("vocab_size", [271, 300, 608], ids=str)
def test_a_tokenizer_trained_on_other_texts_gets_its_question_too(vocab_size: int) -> None:
    tokenizer = Tokenizer(train_tokenizer(["to be or not to be"], vocab_size_base=vocab_size))
    assert len(tokenizer.encode(question_of_length(tokenizer, 32))) == 32


class _EvenTokenizer(Tokenizer):
    """A stub that encodes every text as an even number of tokens."""

    def encode(self, text: str) -> list[int]:
        return [0] * (2 * len(text.replace("?", " ? ").split()))


def test_a_length_that_no_text_has_is_refused(tokenizer_json: str) -> None:
    tokenizer = _EvenTokenizer(tokenizers.Tokenizer.from_str(tokenizer_json))
    with pytest.raises(RequestError, match=r"exactly 31 tokens .* nearest has 30"):
        question_of_length(tokenizer, 31)
