"""Who judged, as a result says it, for tests in which nobody does."""

from __future__ import annotations

from blip3v.evaluation.benchmark.results import JudgeRecord

JUDGE = JudgeRecord(
    url="http://judge/v1",
    model="judge",
    answered_by=("judge-0613",),
    prompt="blip3v",
    prompt_digest="ab" * 32,
    num_judged=90,
    num_unparsable=0,
    num_requests=90,
    prompt_tokens=1,
    completion_tokens=1,
    cost=None,
)
