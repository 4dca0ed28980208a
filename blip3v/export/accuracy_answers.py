"""The answers of one back end's graphs beside the reference's: greedy ones, and every choice after the same tokens."""

# Shapes: M video tokens, N positions, D width, V logits.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blip3v.export.accuracy import AnswerScore
from blip3v.export.accuracy_graphs import Graphs
from blip3v.export.accuracy_measures import kl_divergence
from blip3v.export.accuracy_reference import ClipPrompt, Reference

__all__ = ["Answers", "answer_score", "compare_answers"]


@dataclass
class Answers:
    """What one back end answered, next to the reference."""

    own: list[list[int]]  # greedy answers of the graph, each with the token that ends it
    kl: list[NDArray[np.float64]] = field(default_factory=list)  # after each prefix of the reference's answers
    agreeing: int = 0  # choices after these prefixes


def compare_answers(
    graphs: Graphs,
    reference: Reference,
    prompts: Sequence[ClipPrompt],
    video: Sequence[NDArray[np.floating]],
) -> Answers:
    """Lets the graphs answer, and compares every choice with the reference's after the same tokens.

    Args:
        graphs: what is measured.
        reference: which is asked until all its answers are complete; it keeps them for the next call, and drops what a
            call that failed has left of others.
        prompts: the questions, the same as the reference's.
        video: the graphs' own video tokens (M, D) of each clip.
    """
    reference.drop_incomplete()  # the drafts begin with ``known``, which is empty
    known: list[list[int]] = [[] for _ in prompts]  # of the reference's answers, as far as the graphs were compared
    result = Answers(own=[])
    pending = list(range(len(prompts)))
    while pending:
        drafts = graphs.draft([prompts[i] for i in pending], video, [known[i] for i in pending])
        if not result.own:
            result.own = [draft.token_ids for draft in drafts]
        graphs.make_room(reference.memory_bytes)
        reference.check({i: [*known[i], *draft.token_ids] for i, draft in zip(pending, drafts, strict=True)})
        for i, draft in zip(pending, drafts, strict=True):
            answer, start = reference.answers[i], len(known[i])
            theirs = answer.token_ids[start : start + len(draft.token_ids)]
            agreeing = _num_common(draft.token_ids, theirs)
            count = min(agreeing + 1, len(theirs))
            expected_NV = np.stack(answer.logits[start : start + count])
            result.kl.append(kl_divergence(expected_NV, draft.logits_nV[:count]))
            result.agreeing += agreeing
            known[i] = answer.token_ids[: start + count]
        # An answer that contradicted its draft goes on: cut short, it would count as wrong and hide a loss.
        answers = reference.answers
        pending = [i for i in pending if not answers[i].is_complete or len(known[i]) < len(answers[i].token_ids)]
    return result


def answer_score(answers: Answers, reference: Reference) -> AnswerScore:
    """Sums up what ``compare_answers`` found."""
    kl = np.concatenate(answers.kl)
    same = [ours == theirs.token_ids for ours, theirs in zip(answers.own, reference.answers, strict=True)]
    return AnswerScore(
        num_tokens=len(kl),
        tokens_agreeing=answers.agreeing,
        kl_mean=float(kl.mean()),
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        num_answers=len(same),
        answers_agreeing=sum(same),
    )


def _num_common(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """Tokens before the first difference."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(ours), len(theirs)))
