"""What one request asks for: how tokens are chosen, when to stop, and how it can be taken back.

Not here: how a token is chosen (``sampling.py``) and how the loop runs (``generate.py``).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from blip3v.errors import CancelledError, RequestError, RequestTimeoutError

__all__ = ["CancelToken", "Control", "GenerationOptions"]

_MAX_STOPS = 16
_MAX_STOP_CHARS = 256
_MAX_LOGPROBS = 20


@dataclass(frozen=True, kw_only=True)
class GenerationOptions:
    """Options of one answer. The defaults are greedy and give the same answer each time.

    The order is that of the transformers library: repetition penalty, temperature, top-k, top-p.

    Raises:
        RequestError: a value outside the range named at its field.
    """

    max_new_tokens: int | None = None  # at least 1; None: the bundle's own limit, or what the context leaves if less
    temperature: float = 0.0  # at least 0; 0: greedy, the most likely token
    top_p: float = 1.0  # in (0, 1]: the smallest set of tokens that holds this share
    top_k: int = 0  # at least 0: the k most likely tokens; 0: all
    repetition_penalty: float = 1.0  # above 0: divides the positive logits of tokens already in this answer; 1: none
    stop: tuple[str, ...] = ()  # the answer ends before the first of these texts
    ignore_stop_token: bool = False  # run to max_new_tokens (for measurements)
    seed: int = 0  # at least 0: of the random choice; the same seed gives the same answer
    logprobs: int | None = None  # 0 to 20: log-probability of each token and of so many most likely ones
    timeout_s: float | None = None  # above 0: from the call to the last token

    def __post_init__(self) -> None:
        _whole("max_new_tokens", self.max_new_tokens, 1, None)
        _whole("top_k", self.top_k, 0, None)
        _whole("seed", self.seed, 0, None)
        _whole("logprobs", self.logprobs, 0, _MAX_LOGPROBS)
        _number("temperature", self.temperature, "at least 0", lambda value: value >= 0)
        _number("top_p", self.top_p, "above 0 and at most 1", lambda value: 0 < value <= 1)
        _number("repetition_penalty", self.repetition_penalty, "above 0", lambda value: value > 0)
        if self.timeout_s is not None:
            _number("timeout_s", self.timeout_s, "of seconds above 0", lambda value: value > 0)
        self._check_choice()
        self._check_stop()

    def _check_choice(self) -> None:
        if self.temperature == 0 and (self.top_k or self.top_p < 1 or self.seed):
            raise RequestError(
                "top_p, top_k and seed have no effect at temperature 0, which takes the most likely token; "
                "set temperature above 0 or leave them out"
            )

    def _check_stop(self) -> None:
        if isinstance(self.stop, str) or not all(isinstance(text, str) for text in self.stop):
            raise RequestError(f"stop is {self.stop!r}; a tuple of texts is expected, for example stop=('.',)")
        object.__setattr__(self, "stop", tuple(self.stop))
        if len(self.stop) > _MAX_STOPS:
            raise RequestError(f"stop holds {len(self.stop)} texts; at most {_MAX_STOPS} are allowed")
        for text in self.stop:
            if not 1 <= len(text) <= _MAX_STOP_CHARS:
                raise RequestError(f"a stop text has {len(text)} characters; 1 to {_MAX_STOP_CHARS} are allowed")


class CancelToken:
    """Takes a request back from another thread: it ends with ``CancelledError`` within one token."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def cancel(self) -> None:
        """Takes the request back. May be called from any thread, any number of times."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether ``cancel`` was called."""
        return self._event.is_set()


class Control:
    """Deadline and cancellation of one running request, asked between any two steps of it."""

    def __init__(self, timeout_s: float | None, cancel: CancelToken | None) -> None:
        self._timeout_s = timeout_s
        self._cancel = cancel
        self._start_s = time.perf_counter()

    def check(self) -> None:
        """Lets the request go on.

        Raises:
            CancelledError: the caller took it back.
            RequestTimeoutError: its time is over.
        """
        if self._cancel is not None and self._cancel.cancelled:
            raise CancelledError(f"the request was cancelled after {self.elapsed_s:.2f} s")
        left = self.remaining_s
        if left is not None and left <= 0:
            raise RequestTimeoutError(
                f"the request took longer than timeout_s={self._timeout_s:g}; allow more time or fewer new tokens"
            )

    @property
    def elapsed_s(self) -> float:
        """Seconds since the request began."""
        return time.perf_counter() - self._start_s

    @property
    def remaining_s(self) -> float | None:
        """Seconds left; None: no limit."""
        return None if self._timeout_s is None else self._timeout_s - self.elapsed_s


def _whole(name: str, value: object, low: int, high: int | None) -> None:
    if value is None and name in ("max_new_tokens", "logprobs"):
        return
    span = f"at least {low}" if high is None else f"{low} to {high}"
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        raise RequestError(f"{name} is {value!r}; a whole number, {span}, is expected")


def _number(name: str, value: object, span: str, allowed: Callable[[float], bool]) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not allowed(value):
        raise RequestError(f"{name} is {value!r}; a number {span} is expected")
