"""The client against a stand-in that speaks the protocol, and one that does not."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from pathlib import Path

import pytest
from endpoint_server import Reply, StandIn, completion, refusal, serving

from blip3v.endpoint import AnswerCache, ChatMessage, ChatRequest, Client, Endpoint, Prices, Usage, estimate_usage
from blip3v.endpoint.transport import _retry_after
from blip3v.errors import ConfigError, EndpointError, UsageError

Serve = Callable[..., StandIn]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with contextlib.ExitStack() as stack:
        yield lambda model, **values: stack.enter_context(serving(StandIn(model, **values), monkeypatch))


def ask(text: str = "hello", **values) -> ChatRequest:
    return ChatRequest((ChatMessage("system", "Be short."), ChatMessage("user", text)), **values)


def client(stand_in: StandIn, cache: Path | None = None, **values) -> Client:
    of_client = {name: values.pop(name) for name in ("prices", "max_cost") if name in values}
    endpoint = Endpoint(url=stand_in.url, model=values.pop("model", "judge"), **values)
    return Client(endpoint, cache=AnswerCache(cache) if cache else None, first_wait_s=0.01, **of_client)


def echo(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"].upper()


def in_turn(*answers: str | Reply) -> Callable[[list[dict[str, str]]], str | Reply]:
    """The answers one after another; the last one from then on."""
    left = itertools.chain(answers, itertools.repeat(answers[-1]))
    return lambda _: next(left)


def test_a_request_goes_over_the_wire_in_the_words_of_the_protocol(serve: Serve):
    stand_in = serve(echo)
    answer = client(stand_in).complete(ask("hello", temperature=0.0, max_tokens=5))
    assert (answer.text, answer.model, answer.finish_reason, answer.is_cached) == ("HELLO", "judge-0123", "stop", False)
    assert (answer.prompt_tokens, answer.completion_tokens) == (10, 2)
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}]
    assert stand_in.requests == [{"model": "judge", "messages": messages, "temperature": 0.0, "max_tokens": 5}]


def test_what_is_not_given_is_not_sent(serve: Serve):
    stand_in = serve(echo)
    client(stand_in).complete(ask())
    assert set(stand_in.requests[0]) == {"model", "messages"}


def test_the_key_comes_from_the_environment(serve: Serve, monkeypatch: pytest.MonkeyPatch):
    stand_in = serve(echo, key="secret")
    with pytest.raises(EndpointError, match=r"wants a key, and none is set in MY_KEY .*401: Incorrect"):
        client(stand_in, key_variable="MY_KEY").complete(ask())
    monkeypatch.setenv("MY_KEY", "wrong")
    with pytest.raises(EndpointError, match="does not accept the key in MY_KEY") as caught:
        client(stand_in, key_variable="MY_KEY").complete(ask())
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("MY_KEY", "secret\n")
    assert client(stand_in, key_variable="MY_KEY").complete(ask()).text == "HELLO"


@pytest.mark.parametrize("transient", [refusal(429), refusal(503), refusal(408)], ids=["429", "503", "408"])
def test_a_transient_refusal_is_repeated(serve: Serve, transient: Reply):
    stand_in = serve(in_turn(transient, transient, "yes"))
    assert client(stand_in).complete(ask()).text == "yes"
    assert len(stand_in.requests) == 3


def test_retry_after_is_honoured_by_all_requests(serve: Serve):
    slow = Reply(body=json.dumps(completion("yes", "judge")), hang_s=0.1)
    stand_in = serve(in_turn(refusal(429, Retry_After="0.4"), slow))
    asker = client(stand_in, parallel=2)
    assert [answer.text for _, answer in asker.complete_all([ask(str(i)) for i in range(4)])] == ["yes"] * 4
    later = [at - stand_in.times_s[0] for at in stand_in.times_s]
    assert len(later) == 5
    assert sum(at >= 0.39 for at in later) >= 3  # one may have been under way when the refusal came


def test_retry_after_may_be_a_date():
    assert _retry_after(formatdate(time.time() + 30, usegmt=True)) == pytest.approx(30, abs=2)
    assert _retry_after(formatdate(0)) == 0
    assert [_retry_after("soon"), _retry_after(None), _retry_after("-3")] == [None, None, 0]


def test_an_endpoint_that_asks_for_too_long_a_wait_ends_it(serve: Serve):
    with pytest.raises(EndpointError, match="answers 429: busy and asks to wait 7200 s; run it again after that"):
        client(serve(lambda _: refusal(429, "busy", Retry_After="7200"))).complete(ask())


def test_it_gives_up_after_the_allowed_attempts(serve: Serve):
    stand_in = serve(lambda _: refusal(500, "out of order"))
    with pytest.raises(EndpointError, match="answers 500: out of order, 3 times in a row"):
        client(stand_in, max_attempts=3).complete(ask())
    assert len(stand_in.requests) == 3


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (refusal(429, "pay first", code="insufficient_quota"), "refuses the request .429: pay first"),
        (refusal(404, "no judge here"), "knows no model 'judge'.*404: no judge here.*under /models"),
        (refusal(400, "bad temperature"), "refuses the request .400: bad temperature"),
        (Reply(status=302, headers={"Location": "http://elsewhere/"}), "302: redirects to http://elsewhere/"),
    ],
    ids=["quota", "model", "bad request", "redirect"],
)
def test_what_repeating_cannot_help_ends_at_once(serve: Serve, reply: Reply, message: str):
    stand_in = serve(lambda _: reply)
    with pytest.raises(EndpointError, match=message):
        client(stand_in).complete(ask())
    assert len(stand_in.requests) == 1


NONSENSE = {
    "html": "<html>welcome</html>",
    "no choices": '{"choices": []}',
    "no message": '{"choices": [{"text": "x"}]}',
    "a list": "[1]",
    "parts": json.dumps({"choices": [{"message": {"content": [1]}}]}),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_what_does_not_speak_the_protocol_is_told_at_once(serve: Serve, name: str):
    stand_in = serve(lambda _: Reply(body=NONSENSE[name]))
    with pytest.raises(EndpointError, match=r"does not speak the protocol.*usually ends in /v1"):
        client(stand_in).complete(ask())
    assert len(stand_in.requests) == 1


def test_after_an_answer_nonsense_and_lost_connections_are_repeated(serve: Serve):
    lost = Reply(body="{", cut=True)
    stand_in = serve(in_turn("yes", Reply(body="<html>"), lost, "no"))
    asker = client(stand_in)
    assert [asker.complete(ask()).text, asker.complete(ask()).text] == ["yes", "no"]
    assert len(stand_in.requests) == 4


def test_an_endpoint_that_hangs_is_given_up(serve: Serve):
    with pytest.raises(EndpointError, match=r"did not answer within 0.2 s; check the URL"):
        client(serve(lambda _: Reply(hang_s=0.6)), timeout_s=0.2).complete(ask())


def test_nothing_that_listens_is_told_at_once(serve: Serve):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match="Connection refused; check the URL") as caught:
            Client(Endpoint(url=url, model="judge")).complete(ask())
    assert caught.value.exit_code == 11


def test_a_message_without_content_is_an_empty_answer(serve: Serve):
    assert client(serve(lambda _: Reply(body=json.dumps(completion(None, "judge"))))).complete(ask()).text == ""


def test_requests_run_in_parallel_and_keep_their_index(serve: Serve):
    def slow(messages: list[dict[str, str]]) -> Reply:
        return Reply(body=json.dumps(completion(echo(messages), "judge")), hang_s=0.05)

    stand_in = serve(slow)
    requests = [ask(f"q{i}") for i in range(9)]
    answers = dict(client(stand_in, parallel=3).complete_all(requests))
    assert {at: answer.text for at, answer in answers.items()} == {i: f"Q{i}" for i in range(9)}
    assert 2 <= stand_in.at_once <= 3


def test_an_error_ends_all_requests(serve: Serve):
    stand_in = serve(lambda messages: refusal(400, "no") if messages[-1]["content"] == "q2" else "yes")
    with pytest.raises(EndpointError, match="400: no"):
        list(client(stand_in, parallel=1).complete_all([ask(f"q{i}") for i in range(50)]))
    assert len(stand_in.requests) == 3


def test_no_requests_are_no_answers():
    assert list(Client(Endpoint(url="http://localhost/v1", model="judge")).complete_all([])) == []


def test_requests_keep_to_their_rate(serve: Serve):
    stand_in = serve(echo)
    asker = client(stand_in, requests_per_minute=1200, parallel=4)
    assert len(list(asker.complete_all([ask(str(i)) for i in range(6)]))) == 6
    assert stand_in.times_s[-1] - stand_in.times_s[0] >= 5 * 0.05 - 0.04


def test_an_answer_is_paid_once(serve: Serve, tmp_path: Path):
    stand_in = serve(echo)
    first, second = client(stand_in, tmp_path / "new" / "cache"), client(stand_in, tmp_path / "new" / "cache")
    assert not second.is_cached(ask())
    first.complete(ask())
    assert second.is_cached(ask())
    answer = second.complete(ask())
    assert (answer.text, answer.is_cached, len(stand_in.requests)) == ("HELLO", True, 1)
    assert (first.usage, second.usage) == (Usage(1, 0, 10, 2), Usage(0, 1, 0, 0))


@pytest.mark.parametrize(
    "other",
    [
        ask("other"),
        ask(temperature=0.0),
        ask(max_tokens=1),
        ask(attempt=1),
        ChatRequest((ChatMessage("user", "hello"),)),
    ],
    ids=["text", "temperature", "length", "attempt", "turns"],
)
def test_another_request_is_another_answer(serve: Serve, tmp_path: Path, other: ChatRequest):
    asker = client(serve(echo), tmp_path)
    asker.complete(ask())
    assert not asker.is_cached(other)


def test_another_model_is_another_answer(serve: Serve, tmp_path: Path):
    stand_in = serve(echo)
    client(stand_in, tmp_path).complete(ask())
    assert not client(stand_in, tmp_path, model="other").is_cached(ask())


def test_two_runs_share_a_cache(serve: Serve, tmp_path: Path):
    stand_in = serve(echo)
    requests = [ask(f"q{i % 6}") for i in range(12)]
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda: dict(client(stand_in, tmp_path).complete_all(requests))) for _ in range(2)]
    for run in runs:
        assert [run.result()[i].text for i in range(12)] == [f"Q{i % 6}" for i in range(12)]
    assert len(list(tmp_path.rglob("*.json"))) == len(list(tmp_path.rglob("*.*"))) == 6


def test_a_damaged_answer_is_named(serve: Serve, tmp_path: Path):
    asker = client(serve(echo), tmp_path)
    asker.complete(ask())
    (path,) = tmp_path.rglob("*.json")
    path.write_text('{"answer": {"text": 3}}')
    with pytest.raises(ConfigError, match=rf"the cached answer {path} is damaged .*; delete it"):
        asker.complete(ask())


def test_the_cost_has_a_limit(serve: Serve, tmp_path: Path):
    stand_in, prices = serve(echo), Prices(prompt=1e5, completion=5e5)  # 1 for the ten tokens, 1 for the two
    asker = client(stand_in, tmp_path, prices=prices, max_cost=4, parallel=1)
    with pytest.raises(EndpointError, match=r"have cost 4, and 4 is the limit; .*in the cache"):
        list(asker.complete_all([ask(str(i)) for i in range(9)]))
    assert (len(stand_in.requests), asker.cost) == (2, 4)
    resumed = client(stand_in, tmp_path, prices=prices, max_cost=4, parallel=1)
    assert [resumed.complete(ask(str(i))).is_cached for i in range(3)] == [True, True, False]


def test_an_estimate_counts_text():
    usage = estimate_usage([ask("x" * 40), ask("y" * 41)], completion_tokens=20)
    assert usage == Usage(2, 0, (3 + 4) * 2 + (10 + 4) + (11 + 4), 40)
    assert usage.cost(Prices(1.0, 10.0)) == pytest.approx((43 + 400) / 1e6)


def test_closing_the_iterator_ends_the_work(serve: Serve):
    stand_in = serve(echo)
    before = threading.active_count()
    answers = client(stand_in, parallel=2, requests_per_minute=300).complete_all([ask(str(i)) for i in range(100)])
    next(iter(answers))
    answers.close()  # type: ignore[attr-defined]
    end_s = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < end_s:
        time.sleep(0.02)
    assert threading.active_count() == before
    assert len(stand_in.requests) < 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"url": "api.openai.com/v1"}, "is not the URL of an endpoint"),
        ({"url": "ftp://host/v1"}, "is not the URL of an endpoint"),
        ({"url": "https://host/v1?key=x"}, "is not the URL of an endpoint"),
        ({"url": "https://me:pass@host/v1"}, "holds a user name; put the key into an environment variable"),
        ({"model": ""}, "model is empty"),
        ({"timeout_s": 0.0}, "timeout_s is 0; a number above 0"),
        ({"requests_per_minute": -1.0}, "requests_per_minute is -1"),
        ({"parallel": 0}, "parallel is 0; at least 1"),
    ],
)
def test_settings_are_checked(values: dict, message: str):
    with pytest.raises(UsageError, match=message):
        Endpoint(**{"url": "http://localhost/v1/", "model": "judge", **values})
