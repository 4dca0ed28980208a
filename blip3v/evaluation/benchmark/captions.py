"""Captions against all references: CIDEr, BLEU-4 and ROUGE-L, the last two with the packages that the field keeps.

``sacrebleu`` and ``rouge_score`` are in the extra ``eval`` and are imported when a score is asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

from blip3v.evaluation.benchmark.cider import cider_scores

__all__ = ["CaptionScores", "caption_scores"]


@dataclass(frozen=True, kw_only=True)
class CaptionScores:
    """Scores of a set of captions; the first of each is over the set, the lists are for each clip."""

    cider: tuple[float, ...]  # 0 to 10
    bleu4: float  # 0 to 100, of the whole set; there is no BLEU of a clip
    rouge_l: tuple[float, ...]  # 0 to 1: the F-measure with the closest reference
    settings: dict[str, str]  # how each was computed, for the record


def caption_scores(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> CaptionScores:
    """Scores captions.

    Args:
        candidates: one a clip, at least one in all.
        references: of each clip, at least one.

    Raises:
        ModuleNotFoundError: a package of the extra ``eval`` is not installed.
    """
    from rouge_score.rouge_scorer import RougeScorer  # both: packages of an extra
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(lowercase=True)
    most = max(map(len, references))
    streams = [[texts[at] if at < len(texts) else None for texts in references] for at in range(most)]
    bleu4 = bleu.corpus_score(list(candidates), streams).score  # type: ignore[arg-type]  # None: no reference
    rouge = RougeScorer(["rougeL"])
    return CaptionScores(
        cider=tuple(cider_scores(candidates, references)),
        bleu4=bleu4,
        rouge_l=tuple(
            max(rouge.score(reference, candidate)["rougeL"].fmeasure for reference in texts)
            for candidate, texts in zip(candidates, references, strict=True)
        ),
        settings={
            "cider": "CIDEr-D, n 1-4, sigma 6, words without the PTB tokenizer",
            "bleu4": f"sacrebleu {bleu.get_signature()}",
            "rouge_l": f"rouge-score {version('rouge-score')}, rougeL F-measure, no stemmer, best reference",
        },
    )
