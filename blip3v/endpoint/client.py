"""Asks an endpoint: from the cache, or with retries at a pace, several requests at once, up to a cost.

What is retried, and how long is waited:

- 429: as ``Retry-After`` says, else twice as long each time; all requests wait, not only the refused one.
- 408, 409, 5xx: twice as long each time.
- No connection, a time-out, a response that is no chat completion: the same, once the endpoint has answered anything.
  Before that it is the wrong URL, or nothing runs there, and an error at once.

Anything else is an error at once, and so is a 429 that says that the quota is used up.
"""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from blip3v.endpoint.cache import AnswerCache
from blip3v.endpoint.chat import ChatRequest, Completion
from blip3v.endpoint.pace import Pace
from blip3v.endpoint.settings import Endpoint
from blip3v.endpoint.transport import Refusal, UnreachableError, post_json
from blip3v.endpoint.usage import Prices, Usage
from blip3v.errors import CancelledError, EndpointError

__all__ = ["Client"]

_TRANSIENT = (408, 409, 429)
_USED_UP = ("insufficient_quota", "billing_hard_limit_reached")
_FIRST_WAIT_S = 1.0
_LONGEST_WAIT_S = 120.0


@dataclass(frozen=True)
class _Failed:
    """An attempt that may be repeated."""

    reason: str
    wait_s: float | None = None  # that the endpoint asks for
    is_for_all: bool = False  # whether the other requests have to wait too


class Client:
    """Completes chats. May be used from several threads.

    Args:
        endpoint: where, which model, and how.
        cache: where answers are kept and looked up; None: every request is sent.
        prices: to limit the cost by; None: unknown.
        max_cost: the endpoint is asked nothing more once its answers have cost this much, in the prices' currency; what
            is under way then is still paid. None: no limit.
        first_wait_s: before the second attempt; each further wait is twice as long.

    Raises:
        ValueError: ``max_cost`` without ``prices``.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        cache: AnswerCache | None = None,
        prices: Prices | None = None,
        max_cost: float | None = None,
        first_wait_s: float = _FIRST_WAIT_S,
    ) -> None:
        if max_cost is not None and prices is None:
            raise ValueError("max_cost needs prices")
        self.endpoint = endpoint
        self._cache, self._prices, self._max_cost = cache, prices, max_cost
        self._first_wait_s = first_wait_s
        self._key = endpoint.key()
        self._pace = Pace(endpoint.requests_per_minute)
        self._lock = threading.Lock()
        self._usage = Usage()
        self._has_answered = False

    @property
    def usage(self) -> Usage:
        """What was answered so far."""
        with self._lock:
            return self._usage

    @property
    def cost(self) -> float | None:
        """What the endpoint's answers have cost so far; None: the prices are unknown."""
        return None if self._prices is None else self.usage.cost(self._prices)

    def is_cached(self, request: ChatRequest) -> bool:
        """Whether the answer is in the cache."""
        return self._cache is not None and self._cache.get(self.endpoint, request) is not None

    def complete(self, request: ChatRequest, *, stop: threading.Event | None = None) -> Completion:
        """Returns the answer to one request.

        Args:
            request: the chat.
            stop: ends a wait when it is set from another thread.

        Raises:
            EndpointError: the endpoint cannot be reached, refuses, does not speak the protocol, or the cost is reached.
            CancelledError: ``stop`` was set.
            ConfigError, OSError: of the cache.
        """
        cached = None if self._cache is None else self._cache.get(self.endpoint, request)
        answer = cached or self._ask(request, stop or threading.Event())
        with self._lock:
            self._usage = self._usage.plus(answer)
        if cached is None and self._cache is not None:
            self._cache.put(self.endpoint, request, answer)
        return answer

    def complete_all(self, requests: Sequence[ChatRequest]) -> Iterator[tuple[int, Completion]]:
        """Yields the index of each request with its answer, as they come. Closing the iterator ends the work.

        Raises:
            EndpointError, ConfigError, OSError: as ``complete``; requests that were not sent yet are not sent.
        """
        stop, lock = threading.Event(), threading.Lock()
        left = iter(enumerate(requests))
        results: queue.SimpleQueue[tuple[int, Completion | Exception]] = queue.SimpleQueue()

        def work() -> None:
            while not stop.is_set():
                with lock:
                    at, request = next(left, (-1, None))
                if request is None:
                    return
                try:
                    results.put((at, self.complete(request, stop=stop)))
                except Exception as error:  # whatever it is belongs to the thread that reads the results
                    results.put((at, error))
                    return

        for _ in range(min(self.endpoint.parallel, len(requests))):
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in requests:
                at, result = results.get()
                if isinstance(result, Exception):
                    raise result
                yield at, result
        finally:
            stop.set()

    def _ask(self, request: ChatRequest, stop: threading.Event) -> Completion:
        wait_s, failed = self._first_wait_s, _Failed("")
        for attempt in range(self.endpoint.max_attempts):
            if attempt:
                # Spread, so that requests that were refused together do not come back together.
                pause_s = failed.wait_s if failed.wait_s is not None else wait_s * random.uniform(0.75, 1.25)
                if pause_s > _LONGEST_WAIT_S:
                    raise self._error(f"{failed.reason} and asks to wait {pause_s:.0f} s", "run it again after that")
                if failed.is_for_all:
                    self._pace.pause(pause_s)
                elif stop.wait(pause_s):
                    raise CancelledError("the request was cancelled before it was repeated")
                wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
            self._check_cost()
            self._pace.wait(stop)
            outcome = self._attempt(request)
            if isinstance(outcome, Completion):
                return outcome
            failed = outcome
        raise self._error(
            f"{failed.reason}, {self.endpoint.max_attempts} times in a row",
            "run it again later; answers so far are in the cache" if self._cache else "run it again later",
        )

    def _attempt(self, request: ChatRequest) -> Completion | _Failed:
        endpoint = self.endpoint
        try:
            body = post_json(
                f"{endpoint.url}/chat/completions",
                request.body(endpoint.model),
                key=self._key,
                timeout_s=endpoint.timeout_s,
            )
        except UnreachableError as error:
            if not self._has_answered:
                raise self._error(f"cannot be used: {error}", "check the URL, and that a server runs there") from error
            return _Failed(f"cannot be reached ({error})")
        if isinstance(body, Refusal):
            return self._refused(body)
        try:
            completion = Completion.parse(body, endpoint.model)
        except (ValueError, RecursionError) as error:
            if not self._has_answered:
                raise self._error(
                    f"does not speak the protocol: its response is no chat completion ({error})",
                    "give the base of an OpenAI-compatible API, which usually ends in /v1",
                ) from error
            return _Failed(f"sent a response that is no chat completion ({error})")
        self._has_answered = True
        return completion

    def _refused(self, refusal: Refusal) -> _Failed:
        """What to repeat.

        Raises:
            EndpointError: repeating it does not help.
        """
        endpoint, status = self.endpoint, refusal.status
        said = f": {refusal.detail}" if refusal.detail else ""
        if status in (401, 403):
            how = "does not accept the key in" if self._key else "wants a key, and none is set in"
            raise self._error(f"{how} {endpoint.key_variable} ({status}{said})", f"set {endpoint.key_variable}")
        if status == 404:
            raise self._error(
                f"knows no model {endpoint.model!r}, or has no chat completions at this URL ({status}{said})",
                "give a model that it lists under /models, and a base URL, which usually ends in /v1",
            )
        if (status in _TRANSIENT and refusal.code not in _USED_UP) or status >= 500:
            return _Failed(f"answers {status}{said}", refusal.retry_after_s, is_for_all=status == 429)
        raise self._error(f"refuses the request ({status}{said})", "check its URL, the model and your account there")

    def _check_cost(self) -> None:
        cost = self.cost
        if self._max_cost is not None and cost is not None and cost >= self._max_cost:
            raise EndpointError(
                f"the answers of {self.endpoint.model} have cost {cost:.4g}, and {self._max_cost:g} is the limit; "
                "run it again with a higher limit" + ("; answers so far are in the cache" if self._cache else "")
            )

    def _error(self, problem: str, advice: str) -> EndpointError:
        return EndpointError(f"the endpoint {self.endpoint.url} {problem}; {advice}")
