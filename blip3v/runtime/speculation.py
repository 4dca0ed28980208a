"""Speculative decoding: tokens are guessed, one run of the decoder verifies them all, and the right ones are kept.

    held: .. a small      guessed: red circle moves      one run of [small red circle moves] gives 4 logits
    chosen from them: red (right), circle (right), turns (wrong: the fourth logits and the cache behind are forgotten)

Each token is chosen by the answer's own writer from the model's own logits, in order, so an answer is the one of plain
decoding, whatever its options. (An engine may round several tokens in one run otherwise than one, as it does in a
batch: where it rounds inputs to int8, two tokens that are nearly as likely may change places.) A step waits for the
weights to come from memory, so a few tokens cost little more than one.

Guesses come from n-grams, with no second model: of the prompt and the answer so far (prompt lookup, as in the
transformers library), and of earlier answers of the same opened bundle, for services that are asked alike things again
and again (as in SuffixDecoding, arXiv 2411.04975).
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from blip3v.runtime.backends import DecoderSession
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.types import Delta

if TYPE_CHECKING:  # they import this module
    from blip3v.runtime.generation import AnswerWriter
    from blip3v.runtime.request import Model

__all__ = ["Drafter", "NgramCounts", "Propose", "speculate"]

# Guesses what follows: the tokens of the answer so far and the largest number of guesses -> at most as many tokens.
Propose = Callable[[Sequence[int], int], Sequence[int]]

_MAX_CONTEXTS = 2**15  # about 15 MB
# A guess that is less likely costs more than it brings, where a further token costs a tenth of a step.
_MIN_LIKELIHOOD = 0.1


class _Followers:
    """What followed one context: each token's count, and the commonest."""

    __slots__ = ("commonest", "counts", "total")

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.total = 0
        self.commonest = -1

    def add(self, token: int) -> None:
        count = self.counts[token] = self.counts.get(token, 0) + 1
        self.total += 1
        if count >= self.counts.get(self.commonest, 0):  # of two that are as common, the later one
            self.commonest = token

    @property
    def share(self) -> float:
        """Of the commonest, less where little was seen."""
        return self.counts[self.commonest] / (self.total + 0.5)


class NgramCounts:
    """How often each token followed the one or two before it.

    Several threads may use it at once. When it is full it begins anew.

    Args:
        orders: how many tokens before are looked at, longest first.
    """

    def __init__(self, orders: tuple[int, ...] = (2, 1)) -> None:
        self._orders = orders
        self._followers: defaultdict[tuple[int, ...], _Followers] = defaultdict(_Followers)
        self._lock = threading.Lock()

    def learn(self, token_ids: Sequence[int], start: int = 1) -> None:
        """Counts the tokens from position ``start`` on, each after those before it."""
        with self._lock:
            if len(self._followers) > _MAX_CONTEXTS:
                self._followers.clear()
            for at in range(start, len(token_ids)):
                for order in self._orders:
                    if order <= at:
                        context = tuple(token_ids[at - order : at])
                        self._followers[context].add(token_ids[at])

    def likeliest(self, before: tuple[int, ...]) -> tuple[int, float] | None:
        """The commonest token after the longest known end of ``before``, and how likely it is; None: none is known."""
        with self._lock:
            for order in self._orders:
                found = self._followers.get(before[-order:])
                if found is not None:
                    return found.commonest, found.share
        return None


class Drafter:
    """Guesses the tokens of one answer.

    Args:
        shared: of earlier answers, which ``finish`` adds this one to.
        prompt_ids: at least one token, of which the last stands before the answer.
    """

    def __init__(self, shared: NgramCounts, prompt_ids: Sequence[int]) -> None:
        self._shared = shared
        self._own = NgramCounts((2,))
        self._ids = list(prompt_ids)
        self._num_prompt = len(self._ids)
        self._own.learn(self._ids)

    def propose(self, token_ids: Sequence[int], limit: int) -> list[int]:
        """Guesses at most ``limit`` tokens that follow the answer so far: fewer, or none, where they are unlikely."""
        num_known = len(self._ids)
        self._ids += token_ids[num_known - self._num_prompt :]
        self._own.learn(self._ids, start=num_known)
        before, guessed, likelihood = tuple(self._ids[-2:]), list[int](), 1.0
        while len(guessed) < limit:
            known = [found for counts in (self._own, self._shared) if (found := counts.likeliest(before)) is not None]
            if not known:
                break
            token, share = max(known, key=lambda found: found[1])
            likelihood *= share
            if likelihood < _MIN_LIKELIHOOD:
                break
            guessed.append(token)
            before = (before[-1], token)
        return guessed

    def finish(self, token_ids: Sequence[int]) -> None:
        """Keeps the complete answer for later ones."""
        self._shared.learn([self._ids[self._num_prompt - 1], *token_ids])


def speculate(
    session: DecoderSession, writer: AnswerWriter, model: Model, deadline: Deadline, propose: Propose | None = None
) -> Iterator[Delta]:
    """Runs an answer from its second token to its end and yields the pieces.

    A piece is chosen when it is asked for, so whoever stops in between has an answer that ends there.

    Args:
        session: of one row, which holds the prompt; afterwards every new token but the last too.
        writer: has chosen the first token.
        model: embeds tokens.
        deadline: checked before each run of the graph.
        propose: guesses; None: a ``Drafter``, which learns the answer when it is complete.

    Raises:
        CancelledError, RequestTimeoutError: from ``deadline``.
        BackendError: from the graph.
    """
    drafter = Drafter(model.ngrams, writer.request.ids)
    most = min(writer.request.options.num_speculative_tokens, model.decoder.max_verified - 1)
    while writer.finish_reason is None:
        deadline.check()
        start_s = time.perf_counter()
        limit = min(most, writer.request.max_new_tokens - len(writer.token_ids) - 1)
        guessed = list((propose or drafter.propose)(writer.token_ids, limit))
        embeds_tD = model.embed([writer.token_ids[-1], *guessed])
        num_held = session.lengths[0]
        logits_tV = session.verify(embeds_tD) if guessed else session.step(embeds_tD)
        writer.steps_s += time.perf_counter() - start_s
        writer.num_steps += 1
        writer.num_draft_tokens += len(guessed)
        for position, logits_V in enumerate(logits_tV):
            piece = writer.push(logits_V)
            is_right = writer.finish_reason is None and guessed[position : position + 1] == writer.token_ids[-1:]
            writer.num_accepted_tokens += is_right
            if not is_right:
                session.truncate(num_held + position + 1)
            yield piece
            if not is_right:
                break
    drafter.finish(writer.token_ids)
