"""The judge: what it is asked, how its replies are read, and what is counted. A local server stands for it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint_server import Reply, StandIn, refusal, serving

from blip3v.endpoint import AnswerCache, Client, Endpoint
from blip3v.errors import EndpointError, UsageError
from blip3v.evaluation.benchmark.judge import Judged, JudgePrompt, Verdict, judge, parse_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("{'pred': 'yes', 'score': 4}", Verdict(True, 4)),
        ("{'pred': 'no', 'score': 0}", Verdict(False, 0)),
        ('{"pred": "Yes.", "score": 5}', Verdict(True, 5)),
        ("{'pred': 'yes', 'score': 4.8}", Verdict(True, 4)),
        ("{'pred': 'no', 'score': '2'}", Verdict(False, 2)),
        ("{'pred': 'no, not yes', 'score': 1}", Verdict(True, 1)),  # as the authors read it
        ("Here it is:\n```python\n{'pred': 'no', 'score': 3}\n```", Verdict(False, 3)),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'pred': 'yes', 'score': 6}", None),
        ("{'pred': 'yes', 'score': 'four'}", None),
        ("{'pred': 'yes', 'score': 1e999}", None),
        ("{'pred': 'yes', 'score': None}", None),
        ("{'score': 4}", None),
        ("{'pred', 'yes'}", None),
        ("{'pred': yes, 'score': 4}", None),
        ("{'pred': __import__('os').getcwd(), 'score': 4}", None),
        ("{" * 1900 + "}" * 99, None),
        ("{'pred': 'yes', 'score': 4}" + " " * 3000 + "}", None),
        ("yes, 4", None),
        ("", None),
    ],
)
def test_a_reply_is_read(reply: str, verdict: Verdict | None):
    assert parse_verdict(reply) == verdict


def test_the_judge_is_given_all_three_texts_word_for_word():
    request = JudgePrompt.ours().request(Judged("what {answer}?", "a {prediction}", "x {question} {y}"))
    system, user = (message.content for message in request.messages)
    assert (request.temperature, request.max_tokens) == (None, None)
    assert "Question: what {answer}?\nCorrect Answer: a {prediction}\nPredicted Answer: x {question} {y}\n" in user
    assert "{'pred': 'yes', 'score': 4}" in user
    assert "synonyms and paraphrases match" in system


def test_another_prompt_has_another_digest(tmp_path: Path):
    folder = tmp_path / "authors"
    folder.mkdir()
    with pytest.raises(UsageError, match=r"judge_system.txt cannot be read as text"):
        JudgePrompt.load(folder)
    (folder / "judge_system.txt").write_text("Be kind.")
    (folder / "judge_user.txt").write_text("{question} {prediction}")
    with pytest.raises(UsageError, match=r"judge_user.txt lacks \{answer\}"):
        JudgePrompt.load(folder)
    (folder / "judge_user.txt").write_text("{question} {answer} {prediction}")
    prompt = JudgePrompt.load(folder)
    assert (prompt.name, len(prompt.digest)) == ("authors", 64)
    assert prompt.digest != JudgePrompt.ours().digest


def answers(replies: dict[str, list[str | Reply]]):
    """A model that replies by the predicted answer, one reply after another, then the last again."""

    def model(messages: list[dict[str, str]]) -> str | Reply:
        predicted = next(name for name in replies if f"Predicted Answer: {name}\n" in messages[-1]["content"])
        left = replies[predicted]
        return left.pop(0) if len(left) > 1 else left[0]

    return model


YES, NO = "{'pred': 'yes', 'score': 5}", "{'pred': 'no', 'score': 1}"


@contextlib.contextmanager
def client_of(
    monkeypatch: pytest.MonkeyPatch, cache: Path, replies: dict[str, list[str | Reply]]
) -> Iterator[tuple[StandIn, Client]]:
    with serving(StandIn(answers(replies)), monkeypatch) as stand_in:
        endpoint = Endpoint(url=stand_in.url, model="judge", parallel=1)
        yield stand_in, Client(endpoint, cache=AnswerCache(cache), first_wait_s=0.01)


def test_verdicts_that_cannot_be_read_are_asked_for_again_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replies: dict[str, list[str | Reply]] = {
        "good": [YES],
        "bad": [refusal(429), NO],
        "late": ["I think yes", YES],
        "never": ["no dictionary"],
    }
    judged = [Judged("q", "a", name) for name in replies]
    seen: list[int] = []
    with client_of(monkeypatch, tmp_path, replies) as (stand_in, client):
        judgement = judge(client, JudgePrompt.ours(), judged, progress=seen.append)
        assert judgement.verdicts == (Verdict(True, 5), Verdict(False, 1), Verdict(True, 5), None)
        assert judgement.models == ("judge-0123",)
        assert (len(stand_in.requests), seen) == (4 + 2 + 1 + 1, list(range(1, 8)))
        again = judge(client, JudgePrompt.ours(), judged)
        assert (again, len(stand_in.requests)) == (judgement, 8)


def test_a_judge_that_ends_keeps_its_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    judged = [Judged("q", "a", "good"), Judged("q", "a", "broken")]
    with client_of(monkeypatch, tmp_path, {"good": [YES], "broken": [refusal(400, "no"), NO]}) as (stand_in, client):
        with pytest.raises(EndpointError, match="400: no"):
            judge(client, JudgePrompt.ours(), judged)
        assert judge(client, JudgePrompt.ours(), judged).verdicts == (Verdict(True, 5), Verdict(False, 1))
        assert len(stand_in.requests) == 3
