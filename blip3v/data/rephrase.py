"""Short answers as sentences, by a language model that is given the question: what the paper trains on.

The paper has the answers of MSVD-QA, MSRVTT-QA, NExT-QA and TGIF-QA rephrased by GPT-3.5, and keeps the short ones of
the last two beside them; it does not publish its prompt. Ours is in ``prompts/``. The same answer to the same question
is asked for once, whatever the videos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip3v.data.records import ClipSample, Turn
from blip3v.endpoint import ChatMessage, ChatRequest, Client
from blip3v.errors import ConfigError

__all__ = ["REPLY_TOKENS", "RephrasePrompt", "Rephrased", "rephrase", "short_turns"]

_FOLDER = Path(__file__).parent / "prompts"
_FILES = ("rephrase_system.txt", "rephrase_user.txt")
_MAX_REPLY_TOKENS = 100
REPLY_TOKENS = 20  # about what a sentence has, for an estimate


@dataclass(frozen=True)
class RephrasePrompt:
    """What the model is told. ``user`` holds ``{question}`` and ``{answer}``."""

    system: str
    user: str

    @classmethod
    def load(cls, folder: Path = _FOLDER) -> RephrasePrompt:
        """Reads ``rephrase_system.txt`` and ``rephrase_user.txt``; without a folder, ours.

        Raises:
            ConfigError: a file cannot be read, or a place for the question or the answer is missing.
        """
        try:
            system, user = ((folder / name).read_text("utf-8").strip() for name in _FILES)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{folder} has no prompt: {' and '.join(_FILES)} are expected ({error})") from error
        for place in ("{question}", "{answer}"):
            if user.count(place) != 1:
                raise ConfigError(f"{folder / _FILES[1]} contains {place} {user.count(place)} times; 1 is expected")
        return cls(system, user)

    def request(self, turn: Turn) -> ChatRequest:
        """The chat that asks for a turn's answer as a sentence."""
        before, rest = self.user.split("{question}")  # not str.format: a question may hold braces
        filled = [part.replace("{answer}", turn.answer) for part in (before, rest)]
        messages = (ChatMessage("system", self.system), ChatMessage("user", turn.question.join(filled)))
        return ChatRequest(messages, temperature=0.0, max_tokens=_MAX_REPLY_TOKENS)


@dataclass(frozen=True)
class Rephrased:
    """The samples with sentences as answers.

    Attributes:
        samples: in the given order.
        num_rephrased: turns that got a sentence.
        refused: turns, each once, for which the model gave none; they keep their short answer.
    """

    samples: tuple[ClipSample, ...]
    num_rephrased: int
    refused: tuple[Turn, ...]


def short_turns(samples: Sequence[ClipSample], max_words: int) -> list[Turn]:
    """The turns, each once, whose answer has at most ``max_words`` words."""
    turns = (turn for sample in samples for turn in sample.turns)
    return list(dict.fromkeys(turn for turn in turns if len(turn.answer.split()) <= max_words))


def rephrase(
    samples: Sequence[ClipSample],
    turns: Sequence[Turn],
    client: Client,
    prompt: RephrasePrompt,
    *,
    keep_short: bool = False,
    each: Callable[[], None] = lambda: None,
) -> Rephrased:
    """Has answers rephrased.

    Args:
        samples: whose answers; options and references are dropped, since they are short.
        turns: that are rephrased, from ``short_turns``.
        client: of the endpoint; with a cache, a run that is repeated asks only for what is missing.
        prompt: what the model is told.
        keep_short: whether a sample that changes also stays as it was, before its new form.
        each: called after every answer.

    Raises:
        EndpointError, ConfigError, OSError: of the client.
    """
    sentences: dict[Turn, str] = {}
    for at, completion in client.complete_all([prompt.request(turn) for turn in turns]):
        text = " ".join(completion.text.split())
        if text and completion.finish_reason != "length":
            sentences[turns[at]] = text
        each()
    result: list[ClipSample] = []
    num_rephrased = 0
    for sample in samples:
        changed = tuple(Turn(turn.question, sentences.get(turn, turn.answer)) for turn in sample.turns)
        num_rephrased += sum(turn in sentences for turn in sample.turns)
        if keep_short and changed != sample.turns:
            result.append(sample)
        result.append(dataclasses.replace(sample, turns=changed, options=(), references=()))
    return Rephrased(tuple(result), num_rephrased, tuple(turn for turn in turns if turn not in sentences))
