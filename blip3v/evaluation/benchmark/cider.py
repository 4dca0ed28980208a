"""CIDEr-D, the score that captioning papers report as CIDEr (Vedantam et al., CVPR 2015, equations 1 to 3 and 6).

For n = 1 to 4, a caption is the vector of its n-grams' counts, each times log(N) - log(max(1, df)), where N is the
number of clips and df in how many clips' references the n-gram occurs. A candidate's entries are clipped to the
reference's in the product, which is divided by both norms and multiplied by a Gaussian of the difference in length
(sigma 6). The score of a clip is the mean over its references and over n, times 10; that of a set is the mean over its
clips. It needs several clips: with one, log(N) is 0 and so is the score.

Words are those of ``words``: lower case without punctuation. Papers take Stanford's PTB tokenizer, which needs Java and
splits some words otherwise ("don't" into "do" and "n't").
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

__all__ = ["cider_scores", "words"]

_MAX_N = 4
_SIGMA = 6.0
_SCALE = 10.0
_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")

_Ngram = tuple[str, ...]
_Vector = dict[_Ngram, float]


def words(text: str) -> list[str]:
    """The words of a caption, in lower case; "man's" and "t-shirt" are one word each."""
    return _WORD.findall(text.lower())


def cider_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The score of each clip, from 0 to 10. Papers show it times 100.

    Args:
        candidates: one caption a clip.
        references: of each clip, at least one.
    """
    counted = [[_counts(words(text)) for text in texts] for texts in references]
    weights = _Weights(counted)
    return [
        _clip_score(weights, _counts(words(candidate)), of_clip)
        for candidate, of_clip in zip(candidates, counted, strict=True)
    ]


class _Weights:
    """How much an n-gram tells: the logarithm of its inverse share of clips."""

    def __init__(self, counted: Sequence[Sequence[Counter[_Ngram]]]) -> None:
        self._num_clips: dict[_Ngram, int] = defaultdict(int)
        for of_clip in counted:
            for ngram in set().union(*of_clip):
                self._num_clips[ngram] += 1
        self._log_clips = math.log(len(counted)) if counted else 0.0

    def vector(self, counts: Counter[_Ngram], n: int) -> _Vector:
        return {
            ngram: count * (self._log_clips - math.log(max(1, self._num_clips.get(ngram, 0))))
            for ngram, count in counts.items()
            if len(ngram) == n
        }


def _clip_score(weights: _Weights, candidate: Counter[_Ngram], references: Sequence[Counter[_Ngram]]) -> float:
    length = _length(candidate)
    total = 0.0
    for n in range(1, _MAX_N + 1):
        vector = weights.vector(candidate, n)
        for reference in references:
            of_reference = weights.vector(reference, n)
            penalty = math.exp(-((length - _length(reference)) ** 2) / (2 * _SIGMA**2))
            total += penalty * _clipped_cosine(vector, of_reference)
    return _SCALE * total / (_MAX_N * len(references))


def _clipped_cosine(candidate: _Vector, reference: _Vector) -> float:
    norms = math.sqrt(_squares(candidate) * _squares(reference))
    if norms == 0:
        return 0.0
    return sum(min(value, reference[g]) * reference[g] for g, value in candidate.items() if g in reference) / norms


def _squares(vector: _Vector) -> float:
    return sum(value * value for value in vector.values())


def _counts(tokens: Sequence[str]) -> Counter[_Ngram]:
    return Counter(tuple(tokens[at : at + n]) for n in range(1, _MAX_N + 1) for at in range(len(tokens) - n + 1))


def _length(counts: Counter[_Ngram]) -> int:
    """Number of words. The original counts bigrams, one fewer on both sides, so that the difference is the same."""
    return sum(count for ngram, count in counts.items() if len(ngram) == 1)
