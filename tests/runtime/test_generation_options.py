import threading
from typing import Any

import pytest
from toy_parts import Clock

from blip3v.errors import CancelledError, RequestError, RequestTimeoutError
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.runtime.request import GenerationOptions


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_new_tokens": 1.5}, "max_new_tokens is 1.5"),
        ({"temperature": -1}, "temperature is -1"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": "hot"}, "temperature is 'hot'"),
        ({"temperature": 1, "top_p": 0}, "top_p is 0"),
        ({"temperature": 1, "top_p": 1.01}, "top_p is 1.01"),
        ({"temperature": 1, "top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0}, "repetition_penalty is 0"),
        ({"temperature": 1, "seed": -1}, "seed is -1"),
        ({"logprobs": 21}, "0 to 20"),
        ({"num_speculative_tokens": 33}, "0 to 32"),
        ({"num_speculative_tokens": -1}, "num_speculative_tokens is -1"),
        ({"timeout_s": 0}, "timeout_s is 0"),
        ({"stop": "."}, "tuple of texts"),
        ({"stop": (1,)}, "tuple of texts"),
        ({"stop": ("",)}, "0 characters"),
        ({"stop": ("x" * 257,)}, "257 characters"),
        ({"stop": ("x",) * 17}, "17 texts"),
        ({"top_p": 0.5}, "temperature is 0.*leave out `top_p`$"),
        ({"top_k": 5}, "temperature is 0.*leave out `top_k`$"),
        ({"seed": 5}, "temperature is 0.*leave out `seed`$"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_outside_their_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        GenerationOptions(**values)


def test_a_list_of_stops_becomes_a_tuple() -> None:
    assert GenerationOptions(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]


def test_a_deadline_without_limits_never_ends() -> None:
    deadline = Deadline()
    deadline.check()
    assert deadline.remaining_s is None


def test_a_deadline_raises_after_the_time(clock: Clock) -> None:
    deadline = Deadline(2.0, None)
    clock.now_s = 1.9
    deadline.check()
    assert deadline.remaining_s == pytest.approx(0.1)
    clock.now_s = 2.0
    with pytest.raises(RequestTimeoutError, match="longer than 2 s"):
        deadline.check()


def test_a_deadline_raises_after_cancel_from_another_thread() -> None:
    cancel = CancelToken()
    deadline = Deadline(None, cancel)
    deadline.check()
    thread = threading.Thread(target=cancel.cancel)
    thread.start()
    thread.join()
    assert cancel.cancelled
    with pytest.raises(CancelledError):
        deadline.check()
