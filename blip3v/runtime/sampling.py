"""The next token from logits, in plain numpy. V: logits of one row."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import BackendError
from blip3v.runtime.options import GenerationOptions

__all__ = ["Sampler", "TokenLogprob", "log_softmax", "penalise", "probabilities"]

FloatArray = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a chosen token under the model itself, before temperature and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability) of the most likely ones, best first


class Sampler:
    """Chooses the tokens of one answer; each has its own random generator, so answers do not depend on neighbours."""

    def __init__(self, options: GenerationOptions) -> None:
        self._options = options
        self._rng = np.random.default_rng(options.seed)

    def choose(self, logits_V: NDArray[np.float32], earlier: Collection[int]) -> int:
        """The next token id.

        Args:
            logits_V: (V,) as the model gave them.
            earlier: token ids already in this answer; ``repetition_penalty`` applies to them.

        Raises:
            BackendError: a logit is NaN or infinite.
        """
        if not np.isfinite(logits_V).all():
            raise BackendError(
                "the decoder gave logits that are not finite; its weights or its precision are broken: "
                "run `blip3v verify` on the bundle, or export it in fp32"
            )
        options = self._options
        scores_V = penalise(logits_V, earlier, options.repetition_penalty)
        if options.temperature == 0:
            return int(scores_V.argmax())
        shares_V = probabilities(scores_V, temperature=options.temperature, top_k=options.top_k, top_p=options.top_p)
        # Inverse of the cumulative sum: one random number a token, whatever the filters leave.
        sums_V = shares_V.cumsum()
        return int(np.searchsorted(sums_V, self._rng.random() * sums_V[-1], side="right"))

    def logprob(self, logits_V: NDArray[np.float32], token_id: int) -> TokenLogprob | None:
        """Log-probability of ``token_id`` and of the most likely tokens; None where it was not asked for."""
        count = self._options.logprobs
        if count is None:
            return None
        logprobs_V = log_softmax(logits_V)
        best = np.argsort(-logprobs_V, kind="stable")[:count]
        top = tuple((int(i), float(logprobs_V[i])) for i in best)
        return TokenLogprob(token_id, float(logprobs_V[token_id]), top)


def log_softmax(logits_V: FloatArray) -> NDArray[np.float64]:
    """Natural log of the softmax over the last axis, in float64."""
    shifted_V = logits_V.astype(np.float64) - logits_V.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted_V - np.log(np.exp(shifted_V).sum(-1, keepdims=True))
    return result


def penalise(logits_V: FloatArray, earlier: Collection[int], penalty: float) -> NDArray[np.float64]:
    """Makes used tokens less likely (CTRL, arXiv 1909.05858): positive logits / penalty, negative * penalty."""
    scores_V = logits_V.astype(np.float64)
    if penalty != 1 and earlier:
        used = np.unique(np.fromiter(earlier, np.int64, len(earlier)))
        scores = scores_V[used]
        scores_V[used] = np.where(scores > 0, scores / penalty, scores * penalty)
    return scores_V


def probabilities(
    scores_V: FloatArray, *, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> NDArray[np.float64]:
    """Shares (V,) that sum to 1 after temperature, top-k and top-p.

    Args:
        scores_V: (V,) logits.
        temperature: above 0.
        top_k: tokens to keep; 0: all. Ties at the border go to the lower id.
        top_p: share to keep: the most likely tokens until their sum reaches it; at least one stays.
    """
    shares_V = np.exp(log_softmax(scores_V.astype(np.float64) / temperature))
    if not top_k and top_p == 1:
        return shares_V
    order = np.argsort(-shares_V, kind="stable")
    keep = len(order) if top_k == 0 else min(top_k, len(order))
    if top_p < 1:
        kept = shares_V[order[:keep]]
        before = np.cumsum(kept) - kept
        # The share counts within what top-k left, as in the transformers library.
        keep = max(1, int((before < top_p * kept.sum()).sum()))
    filtered_V = np.zeros_like(shares_V)
    filtered_V[order[:keep]] = shares_V[order[:keep]]
    result: NDArray[np.float64] = filtered_V / filtered_V.sum()
    return result
