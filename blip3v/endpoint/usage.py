"""What was asked, and what it costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from blip3v.endpoint.chat import ChatRequest, Completion

__all__ = ["Prices", "Usage", "estimate_usage"]

_BYTES_A_TOKEN = 4  # of English text, in the usual vocabularies
_TOKENS_A_MESSAGE = 4  # role and separators


@dataclass(frozen=True)
class Prices:
    """What an endpoint charges, in any one currency, for a million tokens."""

    prompt: float
    completion: float


@dataclass(frozen=True)
class Usage:
    """What was answered: from the cache, and by the endpoint with its tokens, which are what costs."""

    num_requests: int = 0  # answered by the endpoint
    num_cached: int = 0  # answered from the cache
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def plus(self, completion: Completion) -> Usage:
        """With one more answer."""
        if completion.is_cached:
            return Usage(self.num_requests, self.num_cached + 1, self.prompt_tokens, self.completion_tokens)
        return Usage(
            self.num_requests + 1,
            self.num_cached,
            self.prompt_tokens + completion.prompt_tokens,
            self.completion_tokens + completion.completion_tokens,
        )

    def since(self, before: Usage) -> Usage:
        """Without what was answered before."""
        return Usage(
            self.num_requests - before.num_requests,
            self.num_cached - before.num_cached,
            self.prompt_tokens - before.prompt_tokens,
            self.completion_tokens - before.completion_tokens,
        )

    def cost(self, prices: Prices) -> float:
        """In the currency of the prices."""
        return (self.prompt_tokens * prices.prompt + self.completion_tokens * prices.completion) / 1e6


def estimate_usage(requests: Iterable[ChatRequest], *, completion_tokens: int) -> Usage:
    """About what requests will use, before they are sent: four bytes of text are taken for a token.

    Args:
        requests: those that are not in the cache.
        completion_tokens: that each answer is expected to have.
    """
    num_requests = prompt_tokens = 0
    for request in requests:
        num_requests += 1
        for message in request.messages:
            prompt_tokens += -(-len(message.content.encode()) // _BYTES_A_TOKEN) + _TOKENS_A_MESSAGE
    return Usage(num_requests, 0, prompt_tokens, num_requests * completion_tokens)
