"""Conversations in the form of LLaVA, as others publish them.

Milder than the reader of the authors' own list (``authors.py``): these files are not the user's, so a mark of the video
may stand anywhere in a question or be left out.
"""

from __future__ import annotations

from blip3v.data.readers.annotations import Record
from blip3v.data.records import Turn
from blip3v.errors import ConfigError

__all__ = ["turns_of"]

_MARKS = ("<video>", "<image>")


def turns_of(record: Record, field: str) -> tuple[Turn, ...]:
    """The turns of a field that is a list of ``{"from": "human" or "gpt", "value": text}``, without marks of the video.

    Raises:
        ConfigError: it is not such a list, or a text is empty.
    """
    messages = record.values.get(field)
    if not isinstance(messages, list) or not messages or len(messages) % 2:
        raise ConfigError(f"{record.where}: {field} is not one or more pairs of a human and a gpt message")
    texts = [_text(message, f"{record.where}: {field}[{at}]", at) for at, message in enumerate(messages)]
    return tuple(Turn(question, answer) for question, answer in zip(texts[::2], texts[1::2], strict=True))


def _text(message: object, where: str, at: int) -> str:
    if not isinstance(message, dict):
        raise ConfigError(f"{where} is not an object; an object with from and value is expected")
    speaker = ("human", "gpt")[at % 2]
    if message.get("from") != speaker:
        raise ConfigError(f"{where}: from is {message.get('from')!r}; {speaker!r} is expected: human and gpt alternate")
    text = Record(message, where).text("value")
    for mark in _MARKS if speaker == "human" else ():
        text = text.replace(mark, "")
    if not text.strip():
        raise ConfigError(f"{where}: value contains no text besides the mark of the video")
    return text.strip()
