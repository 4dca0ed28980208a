"""What is asked and what is answered, in the words of the protocol."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["ChatMessage", "ChatRequest", "Completion"]


@dataclass(frozen=True)
class ChatMessage:
    """One turn."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatRequest:
    """A chat to be completed. What is None is not sent, and left to the endpoint: some models refuse a value."""

    messages: tuple[ChatMessage, ...]
    temperature: float | None = None
    max_tokens: int | None = None
    attempt: int = 0  # not sent; tells the same question, asked again, from the first time in the cache

    def body(self, model: str) -> dict[str, Any]:
        """The request's JSON."""
        values: dict[str, Any] = {
            "model": model,
            "messages": [{"role": message.role, "content": message.content} for message in self.messages],
        }
        if self.temperature is not None:
            values["temperature"] = self.temperature
        if self.max_tokens is not None:
            values["max_tokens"] = self.max_tokens
        return values


@dataclass(frozen=True, kw_only=True)
class Completion:
    """An answer. Counts of tokens are the endpoint's; 0 where it gives none."""

    text: str  # empty where the model said nothing
    model: str  # that the endpoint says has answered, such as a dated snapshot
    finish_reason: str  # "stop", "length", or another word of the endpoint's
    prompt_tokens: int
    completion_tokens: int
    is_cached: bool = False  # whether it was asked for at another time, and costs nothing now

    @classmethod
    def parse(cls, body: bytes, asked: str) -> Completion:
        """Reads the body of a response.

        Args:
            body: as it came.
            asked: the model that was asked for, where the response names none.

        Raises:
            ValueError: it is not a chat completion; the message says what is wrong.
        """
        values = json.loads(body)
        choices = values.get("choices") if isinstance(values, dict) else None
        if not (isinstance(choices, list) and choices and isinstance(choices[0], dict)):
            raise ValueError('it has no "choices"')
        message = choices[0].get("message")
        text = message.get("content") if isinstance(message, dict) else 0
        if not (text is None or isinstance(text, str)):
            raise ValueError('its first choice has no "message" with a text as "content"')
        usage = values.get("usage")
        counts = usage if isinstance(usage, dict) else {}
        return cls(
            text=text or "",
            model=str(values.get("model") or asked),
            finish_reason=str(choices[0].get("finish_reason") or ""),
            prompt_tokens=_count(counts.get("prompt_tokens")),
            completion_tokens=_count(counts.get("completion_tokens")),
        )


def _count(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0
