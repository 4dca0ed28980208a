"""Where an endpoint is, which model answers there, and how it may be used."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from urllib.parse import urlsplit

from blip3v.errors import UsageError

__all__ = ["Endpoint"]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An OpenAI-compatible endpoint.

    Raises:
        UsageError: a field has a value that is not allowed.
    """

    url: str  # the base, to which /chat/completions is added, such as https://api.openai.com/v1
    model: str  # as the endpoint names it
    key_variable: str = "OPENAI_API_KEY"  # environment variable with the key; where it is not set, none is sent
    timeout_s: float = 60.0  # for one attempt, from connecting to the last byte
    max_attempts: int = 6  # for one request
    requests_per_minute: float | None = None  # None: as many as the endpoint takes
    parallel: int = 4  # requests under way at once

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", self.url.rstrip("/"))
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(
                f"{self.url!r} is not the URL of an endpoint; allowed: its base without a query, such as "
                "https://api.openai.com/v1 or http://localhost:8000/v1"
            )
        if parts.username is not None:
            raise UsageError(
                "the URL of the endpoint holds a user name; put the key into an environment variable instead, "
                f"by default {self.key_variable}"
            )
        if not self.model:
            raise UsageError("the name of the endpoint's model is empty; give one that the endpoint serves")
        for name, value in (("timeout_s", self.timeout_s), ("requests_per_minute", self.requests_per_minute)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} is {value:g}; a number above 0 is expected")
        for name, count in (("max_attempts", self.max_attempts), ("parallel", self.parallel)):
            if count < 1:
                raise UsageError(f"{name} is {count}; at least 1 is expected")

    def key(self) -> str | None:
        """The key in the environment; None: there is none, as for a server of one's own.

        Raises:
            UsageError: it has characters that a header cannot hold.
        """
        key = os.environ.get(self.key_variable, "").strip()
        if not (key.isascii() and key.isprintable()):
            raise UsageError(
                f"the environment variable {self.key_variable} holds characters that no key has; set it again"
            )
        return key or None
