"""Turns a question into the ids of a prompt, with the place where the video tokens go.

A prompt contains exactly one ``<image>``: at the start of the first user turn, before a newline and the question.
Callers send text, never markup: content with a special token in it is refused, so nobody can forge a turn.
Legend: T prompt tokens, M video tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from blip3v.errors import ConfigError, RequestError
from blip3v.text.generation import GenerationConfig
from blip3v.text.special import END, IMAGE
from blip3v.text.template import Message, render_chat
from blip3v.text.tokenizer import Tokenizer, check_text

__all__ = ["Prompt", "build_prompt", "check_question", "continue_prompt", "splice"]

# Placeholder that is looked for in a rendered text. NUL is not white space, so a template that trims keeps it.
_MARK = "\x00answer\x00"


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt; ``ids[image_position]`` is ``<image>``, which the video tokens replace."""

    ids: list[int]
    image_position: int

    def length(self, num_video_tokens: int) -> int:
        """Number of positions in the prompt once ``num_video_tokens`` video tokens have replaced ``<image>``."""
        return len(self.ids) - 1 + num_video_tokens


def build_prompt(
    tokenizer: Tokenizer, template: str, generation: GenerationConfig, messages: Sequence[Message]
) -> Prompt:
    """Builds the prompt of a conversation about one video, up to where the assistant's next answer begins.

    Args:
        tokenizer: the model's tokenizer.
        template: the model's chat template.
        generation: its ``system_prompt`` goes first, unless ``messages`` begins with a system turn of its own.
        messages: the turns without ``<image>``, which is added to the first user turn here.

    Raises:
        RequestError: no user turn, an empty one, content with a special token in it, or a system turn for a template
            that writes none.
        ConfigError: a template that fails, or that drops or duplicates ``<image>`` or a marker.
    """
    turns = list(messages)
    for turn in turns:
        _check_content(tokenizer, turn)
    if any(turn.role == "system" for turn in turns):
        _check_writes_system(template)
    if generation.system_prompt is not None and (not turns or turns[0].role != "system"):
        turns.insert(0, Message("system", generation.system_prompt))
    first = next((i for i, turn in enumerate(turns) if turn.role == "user"), None)
    if first is None:
        raise RequestError("the messages have no user turn; add one with a question")
    ids = _encode(tokenizer, template, turns, first)
    if ids.count(tokenizer.image_id) != 1:
        raise ConfigError(
            f"the chat template writes {ids.count(tokenizer.image_id)} {IMAGE} for one video; it must write the "
            "content of the first user turn once"
        )
    return Prompt(ids, ids.index(tokenizer.image_id))


def continue_prompt(tokenizer: Tokenizer, template: str, question: str) -> list[int]:
    """Ids that a follow-up question adds after the ``<|end|>`` of the last answer.

    For an answer with ids A, the ids of the first prompt + A + ``<|end|>`` + these are the ids of the whole
    conversation rendered at once, provided that A is how the tokenizer itself encodes the answer's text, and that the
    text does not begin with white space (``<|assistant|>`` strips it). A model may generate other tokens for the same
    text; the cache then holds those, which are what it generated. The newline after ``<|end|>`` is among these ids if
    the tokenizer keeps it, but not if ``<|end|>`` strips it, as in the released tokenizer.

    Raises:
        RequestError: an empty question, or one with a special token in it.
        ConfigError: a template that does not close the assistant's turn with ``<|end|>``.
    """
    turn = Message("user", question)
    _check_content(tokenizer, turn)
    text = render_chat(template, [Message("user", "?"), Message("assistant", _MARK), turn])
    _, mark, after = text.partition(_MARK)
    ids = tokenizer.encode(after)
    if not mark or _MARK in after or not ids or ids[0] != tokenizer.end_id:
        raise ConfigError(f"the chat template does not write an assistant's turn as its content and {END}")
    return ids[1:]


def splice(
    embeds_TD: npt.NDArray[np.floating], image_position: int, video_tokens_MD: npt.NDArray[np.floating]
) -> npt.NDArray[np.floating]:
    """Replaces the embedding of ``<image>`` with the video tokens.

    Args:
        embeds_TD: embeddings of the prompt's ids.
        image_position: the index of ``<image>``.
        video_tokens_MD: the video encoder's output.

    Returns:
        (T + M - 1, D) in the dtype of ``embeds_TD``.

    Raises:
        RequestError: different widths, or a position outside the prompt.
    """
    if embeds_TD.ndim != 2 or video_tokens_MD.ndim != 2 or embeds_TD.shape[1] != video_tokens_MD.shape[1]:
        raise RequestError(
            f"video tokens of shape {video_tokens_MD.shape} do not fit embeddings of shape {embeds_TD.shape}; "
            "encode the video with this bundle"
        )
    if not 0 <= image_position < len(embeds_TD):
        raise RequestError(f"image_position is {image_position}; the prompt has {len(embeds_TD)} tokens")
    parts = (embeds_TD[:image_position], video_tokens_MD, embeds_TD[image_position + 1 :])
    return np.concatenate(parts).astype(embeds_TD.dtype, copy=False)


def _encode(tokenizer: Tokenizer, template: str, turns: list[Message], first: int) -> list[int]:
    """Ids of the turns. Their special tokens must be those of the same turns with harmless content.

    This second check catches what a look at the content cannot: a template or a normaliser that turns harmless text
    into a special token.
    """
    real = _with_image(turns, first)
    plain = _with_image([replace(turn, content="x") for turn in turns], first)
    ids, plain_ids = (tokenizer.encode(render_chat(template, each)) for each in (real, plain))
    special = frozenset(tokenizer.added_tokens.values())
    if [i for i in ids if i in special] != [i for i in plain_ids if i in special]:
        raise RequestError("a message becomes special tokens in the chat template; send plain text")
    return ids


def _with_image(turns: list[Message], first: int) -> list[Message]:
    turn = turns[first]
    return [*turns[:first], replace(turn, content=f"{IMAGE}\n{turn.content}"), *turns[first + 1 :]]


def check_question(question: object, name: str = "the question") -> None:
    """Refuses what cannot be a question, without a tokenizer; prompts check it further.

    Args:
        question: what a caller gave.
        name: what it is, for the message.

    Raises:
        RequestError: not a ``str``, one with a lone surrogate, or nothing but white space.
    """
    check_text(name, question)
    if not str(question).strip():
        raise RequestError(f"{name} is empty; ask something about the video")


def _check_writes_system(template: str) -> None:
    if _MARK not in render_chat(template, [Message("system", _MARK), Message("user", "?")]):
        raise RequestError(
            "the model's chat template writes no system turn, so a system text would have no effect",
            remedy="leave `system` out",
        )


def _check_content(tokenizer: Tokenizer, turn: Message) -> None:
    if turn.role == "user":
        check_question(turn.content)
    else:
        check_text(f"the {turn.role} message", turn.content)
    for token in tokenizer.added_tokens:
        if token in turn.content:
            raise RequestError(
                f"the {turn.role} message contains the special token {token}; send plain text without it"
            )
    # A normaliser may make one out of other characters: to SentencePiece, U+2581 is a space.
    if not set(tokenizer.added_tokens.values()).isdisjoint(tokenizer.encode(turn.content)):
        raise RequestError(f"the {turn.role} message becomes a special token; send plain text without it")
