"""Turns conversations into token ids and labels, in the chat template's own form."""

from __future__ import annotations

from dataclasses import dataclass, field

from blip3v.data.samples import Conversation
from blip3v.errors import RequestError
from blip3v.model import IGNORE_INDEX
from blip3v.text import GenerationConfig, Message, Tokenizer, build_prompt, continue_prompt
from blip3v.text.special import ASSISTANT

__all__ = ["ChatFormat", "Row"]

_MAX_CACHED_ROWS = 2**16


@dataclass(frozen=True)
class Row:
    """Token ids of one conversation; every answer and its end token have labels."""

    ids: list[int]
    labels: list[int]  # as long as ids
    image_position: int
    is_cut: bool = False  # turns, or the end of the only answer, were left out


@dataclass(frozen=True)
class ChatFormat:
    """Tokenizer, chat template and generation settings, which turn conversations into rows."""

    tokenizer: Tokenizer
    template: str
    generation: GenerationConfig
    _rows: dict[tuple[Conversation, int | None], Row] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[type[ChatFormat], tuple[Tokenizer, str, GenerationConfig]]:
        return ChatFormat, (self.tokenizer, self.template, self.generation)

    def row(self, conversation: Conversation, max_tokens: int | None = None) -> Row:
        """The conversation's row. The first rows are cached: a film's questions recur.

        Args:
            conversation: the turns; the video belongs before the first question.
            max_tokens: ids of a row at most, with one for the video. Turns that do not fit are left out from the end;
                of the first turn, which stays, the end of the answer. None: no bound.

        Raises:
            RequestError: an empty question, a special token in a text, or a first question that alone is too long.
        """
        key = conversation, max_tokens
        if key in self._rows:
            return self._rows[key]
        row = self._make_row(conversation, max_tokens)
        if len(self._rows) < _MAX_CACHED_ROWS:
            self._rows[key] = row
        return row

    def _make_row(self, conversation: Conversation, max_tokens: int | None) -> Row:
        bound = max_tokens or float("inf")
        first, *others = conversation
        prompt = build_prompt(self.tokenizer, self.template, self.generation, [Message("user", first.question)])
        if len(prompt.ids) >= bound:
            raise RequestError(
                f"the first question has {len(prompt.ids)} tokens with the prompt around it; max_tokens is {max_tokens}"
            )
        ids, labels = list(prompt.ids), [IGNORE_INDEX] * len(prompt.ids)
        answer = self._answer(first.answer)
        kept = answer[: max_tokens - len(ids)] if max_tokens is not None else answer
        ids, labels = ids + kept, labels + kept
        if len(kept) < len(answer):
            return Row(ids, labels, prompt.image_position, is_cut=True)
        for turn in others:
            question = continue_prompt(self.tokenizer, self.template, turn.question)
            answer = self._answer(turn.answer)
            if len(ids) + len(question) + len(answer) > bound:
                return Row(ids, labels, prompt.image_position, is_cut=True)
            ids, labels = ids + question + answer, labels + [IGNORE_INDEX] * len(question) + answer
        return Row(ids, labels, prompt.image_position)

    def _answer(self, text: str) -> list[int]:
        return [*self.tokenizer.encode_after(ASSISTANT, text), self.tokenizer.end_id]
