"""Multiple choice: how options are shown, which one an answer names, and which one the first token prefers."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from blip3v.evaluation.benchmark.text_match import normalized

__all__ = ["asked_choice", "chosen_option", "most_likely_option"]

_ALONE = re.compile(r"\(?([A-Za-z])\)?[.:]?")  # "B", "b", "(B)", "B.", "(B):"
_LEADING = re.compile(r"(?:\(([A-Za-z])\)|([A-Za-z])[).:,])(?:\s|$)")  # "B. The dog", "(B) the dog"
_NAMED = re.compile(r"\b(?:answer|option|choice)(?:\s+is)?[:\s]+\(?([A-Z])\)?(?=[).,:;]|\s*$)", re.IGNORECASE)


def asked_choice(question: str, options: Sequence[str]) -> str:
    """The question with its options under their letters."""
    lines = [f"{letter}. {option}" for letter, option in zip(string.ascii_uppercase, options, strict=False)]
    return "\n".join([question, *lines, "Answer with the letter of the right option alone."])


def chosen_option(text: str, options: Sequence[str]) -> int | None:
    """The index of the option that an answer names.

    In this order: a letter alone; a letter with a mark at the start; "the answer is" with a letter; the text of exactly
    one option. A word such as "A" in "A dog runs" is no letter.

    Returns:
        None if the answer names no option; it then counts as wrong.
    """
    text = text.strip()
    for match in (_ALONE.fullmatch(text), _LEADING.match(text), _NAMED.search(text)):
        if match is not None:
            index = string.ascii_uppercase.index(next(filter(None, match.groups())).upper())
            return index if index < len(options) else None
    same = [index for index, option in enumerate(options) if normalized(option) == normalized(text)]
    return same[0] if len(same) == 1 else None


def most_likely_option(first_token: Mapping[str, float], num_options: int) -> int | None:
    """The index of the option whose letter is the likeliest first token of the answer.

    Args:
        first_token: texts of tokens with their log-probabilities.
        num_options: how many letters there are.

    Returns:
        None if no letter is among the tokens.
    """
    letters = string.ascii_uppercase[:num_options]
    known = [letter for letter in letters if letter in first_token]
    return letters.index(max(known, key=first_token.__getitem__)) if known else None
