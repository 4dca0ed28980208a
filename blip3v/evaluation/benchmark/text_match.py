"""Whether an answer is one of the right ones, word for word or up to how it is written. Needs no judge."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

__all__ = ["is_exact", "is_normalized", "normalized"]

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def is_exact(prediction: str, references: Sequence[str]) -> bool:
    """Whether the prediction is one of the references, but for white space around them."""
    return prediction.strip() in {reference.strip() for reference in references}


def is_normalized(prediction: str, references: Sequence[str]) -> bool:
    """Whether the normalised prediction is one of the normalised references, and says anything."""
    text = normalized(prediction)
    return bool(text) and text in set(map(normalized, references))


def normalized(text: str) -> str:
    """In lower case, without punctuation and articles, with single spaces (Rajpurkar et al., SQuAD, EMNLP 2016)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())
