"""The question of a sample: exactly so many tokens for any tokenizer."""

from __future__ import annotations

from blip3v.data.film import make_film
from blip3v.data.questions import questions
from blip3v.errors import RequestError
from blip3v.text import Tokenizer

__all__ = ["question_of_length"]

_FILM_SEED = 0
_PAD = "?"


def question_of_length(tokenizer: Tokenizer, num_tokens: int) -> str:
    """A text that the tokenizer writes with exactly ``num_tokens`` tokens.

    The words of the questions about a film follow each other, again from the first one where they end. A word with
    more tokens than are left is passed over; where no word fits any more, question marks fill up.

    Args:
        tokenizer: of the bundle that is asked.
        num_tokens: at least 1. The chat template's own tokens come on top.

    Raises:
        RequestError: no such text has this length.
    """
    words = " ".join(question.text for question in questions(make_film(_FILM_SEED, "test"))).split()

    def count(text: str) -> int:
        return len(tokenizer.encode(text))

    text, length = "", 0
    for word in words * num_tokens:  # more rounds than an ordinary tokenizer needs; it always ends
        if length == num_tokens:
            return text
        longer = f"{text} {word}".lstrip()
        if count(longer) <= num_tokens:
            text, length = longer, count(longer)
    for _ in range(num_tokens):
        text = text + _PAD if count(text + _PAD) <= num_tokens else text
    if count(text) != num_tokens:
        raise RequestError(
            f"no text of film questions has exactly {num_tokens} tokens for this tokenizer; the nearest has "
            f"{count(text)}: measure a bundle with an ordinary tokenizer"
        )
    return text
