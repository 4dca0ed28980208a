"""The judge of Video-ChatGPT (Maaz et al., ACL 2024): a language model says whether an answer is right, and how well.

The prompt is in ``prompts/``, in our own words with the authors' content: the meaning counts, and the reply is a Python
dictionary with ``pred``, yes or no, and ``score``, an integer from 0 to 5. Accuracy is #yes / (#yes + #no); the score
is the mean. A reply that cannot be read is asked for again, and counted if that does not help.

Verdicts of different judges cannot be compared, nor those of one judge with different prompts: the same answers gain or
lose ten points. So the judge's name, the model that answered and the prompt's digest are part of every result.
"""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip3v.endpoint import ChatMessage, ChatRequest, Client
from blip3v.errors import UsageError

__all__ = ["JudgePrompt", "Judged", "Judgement", "Verdict", "judge", "parse_verdict", "requests_of"]

_FOLDER = Path(__file__).parent / "prompts"
_SYSTEM, _USER = "judge_system.txt", "judge_user.txt"
_FIELDS = ("question", "answer", "prediction")
_FIELD = re.compile(r"\{(question|answer|prediction)\}")
_DICTIONARY = re.compile(r"\{.*\}", re.DOTALL)
_MAX_CHARS = 2000  # of a dictionary; a longer one holds something else
_MAX_SCORE = 5


@dataclass(frozen=True)
class JudgePrompt:
    """What the judge is told, and asked about each answer, with {question}, {answer} and {prediction} in it."""

    name: str
    system: str
    user: str

    @classmethod
    def ours(cls) -> JudgePrompt:
        """The one in this repository."""
        return cls("blip3v", (_FOLDER / _SYSTEM).read_text("utf-8"), (_FOLDER / _USER).read_text("utf-8"))

    @classmethod
    def load(cls, folder: Path) -> JudgePrompt:
        """A prompt from a folder with ``judge_system.txt`` and ``judge_user.txt``.

        Raises:
            UsageError: a file is missing or not UTF-8, or the second lacks a field.
        """
        texts = []
        for name in (_SYSTEM, _USER):
            try:
                texts.append((folder / name).read_text("utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"{folder / name} cannot be read as text ({error}); a prompt has that file") from error
        lacking = [f"{{{name}}}" for name in _FIELDS if f"{{{name}}}" not in texts[1]]
        if lacking:
            raise UsageError(f"{folder / _USER} lacks {', '.join(lacking)}; all of them have to stand in it")
        return cls(folder.name, *texts)

    @property
    def digest(self) -> str:
        """sha256 of both texts."""
        return hashlib.sha256(f"{self.system}\0{self.user}".encode()).hexdigest()

    def request(self, judged: Judged, attempt: int = 0) -> ChatRequest:
        """The chat that asks for a verdict. As the authors do, it leaves the decoding to the endpoint."""
        values = dict(zip(_FIELDS, (judged.question, judged.reference, judged.prediction), strict=True))
        user = _FIELD.sub(lambda field: values[field[1]], self.user)
        return ChatRequest((ChatMessage("system", self.system), ChatMessage("user", user)), attempt=attempt)


@dataclass(frozen=True)
class Judged:
    """What a verdict is about."""

    question: str
    reference: str
    prediction: str


@dataclass(frozen=True)
class Verdict:
    """What the judge says of one answer."""

    is_right: bool
    score: int  # 0 to 5


@dataclass(frozen=True)
class Judgement:
    """The verdicts of a set."""

    verdicts: tuple[Verdict | None, ...]  # None: no reply could be read
    models: tuple[str, ...]  # that the endpoint says have answered


def parse_verdict(reply: str) -> Verdict | None:
    """Reads a reply; None if it has no dictionary with ``pred`` and ``score`` in it.

    As in the authors' program "yes" is looked for first, anywhere in ``pred``, and then "no"; the score is cut to an
    integer. Text around the dictionary is passed over.
    """
    found = _DICTIONARY.search(reply)
    if found is None or len(found[0]) > _MAX_CHARS:
        return None
    try:
        values = ast.literal_eval(found[0])
        said, score = str(values["pred"]).lower(), int(values["score"])
    except (ValueError, TypeError, KeyError, SyntaxError, MemoryError, RecursionError, OverflowError):
        return None
    if not 0 <= score <= _MAX_SCORE or not ("yes" in said or "no" in said):
        return None
    return Verdict("yes" in said, score)


def requests_of(prompt: JudgePrompt, judged: Sequence[Judged]) -> list[ChatRequest]:
    """What is sent if every reply can be read at once, to tell the price before it is."""
    return [prompt.request(one) for one in judged]


def judge(
    client: Client,
    prompt: JudgePrompt,
    judged: Sequence[Judged],
    *,
    max_attempts: int = 3,
    progress: Callable[[int], None] | None = None,
) -> Judgement:
    """Asks for a verdict on each answer.

    Args:
        client: the judge.
        prompt: what it is asked.
        judged: the answers.
        max_attempts: how often a verdict is asked for until its reply can be read.
        progress: called with how many replies have come, those that cannot be read included.

    Raises:
        EndpointError, ConfigError, OSError: as ``Client.complete``. Verdicts so far are in the client's cache.
    """
    verdicts: list[Verdict | None] = [None] * len(judged)
    models: set[str] = set()
    left, num_replies = list(range(len(judged))), 0
    for attempt in range(max_attempts):
        requests = [prompt.request(judged[at], attempt) for at in left]
        for index, completion in client.complete_all(requests):
            verdicts[left[index]] = parse_verdict(completion.text)
            models.add(completion.model)
            num_replies += 1
            if progress is not None:
                progress(num_replies)
        left = [at for at in left if verdicts[at] is None]
    return Judgement(tuple(verdicts), tuple(sorted(models)))
