"""The client of any OpenAI-compatible endpoint: chat completions with retries, a pace, a cache and a price.

Not here: what is asked. The judge (``evaluation/``) and the rephrasing of answers (``data/``) have their own prompts.
"""

from __future__ import annotations

from blip3v.endpoint.cache import AnswerCache
from blip3v.endpoint.chat import ChatMessage, ChatRequest, Completion
from blip3v.endpoint.client import Client
from blip3v.endpoint.settings import Endpoint
from blip3v.endpoint.usage import Prices, Usage, estimate_usage

__all__ = [
    "AnswerCache",
    "ChatMessage",
    "ChatRequest",
    "Client",
    "Completion",
    "Endpoint",
    "Prices",
    "Usage",
    "estimate_usage",
]
