"""Closing: the model has one owner, so its memory goes when the last work ends, whoever still holds a chat."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy_graphs import toy_config
from toy_parts import DecoderMaker, graph_file

from blip3v.bundle.graph_io import video_encoder_io
from blip3v.errors import BackendError, UsageError
from blip3v.runtime import Chat, GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.backends import get_backend
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.opening import _open_graphs
from blip3v.runtime.tuned import EngineChoice

FILM = np.random.default_rng(2).integers(0, 256, (4, 20, 30, 3), np.uint8)
LONG = GenerationOptions(max_new_tokens=8, ignore_stop_token=True)


@pytest.fixture
def own_lm(backend: str, bundle_path: Path) -> Iterator[VideoLM]:
    """A VideoLM that the test may close."""
    with VideoLM.open(bundle_path, backend=backend, threads=1) as opened:
        yield opened


class Memory:
    """Weak references to everything large behind a VideoLM and its chats."""

    def __init__(self, lm: VideoLM, *chats: Chat) -> None:
        with lm._owner.lease() as model:
            parts = {"model": model, "decoder": model.decoder, "video encoder": model.video_encoder}
        for name in ("decoder", "video encoder"):
            engine = getattr(parts[name], "_graph", None) or getattr(parts[name], "_compiled", None)
            if name == "decoder" or hasattr(engine, "session"):  # OpenVINO's own object takes no weak reference
                parts[f"engine of the {name}"] = engine
        for chat in chats:
            session: Any = chat._session
            parts |= {"session": session, "layer of a cache": session.cache._layers_2BHSK[0].base.base}
        self._parts = {name: weakref.ref(part) for name, part in parts.items()}

    @property
    def left(self) -> list[str]:
        """What was not freed; no garbage collection helps, since a service may have it switched off."""
        return [name for name, part in self._parts.items() if part() is not None]


@pytest.fixture(autouse=True, scope="module")
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_closing_frees_weights_and_caches_though_a_chat_is_kept(own_lm: VideoLM, video: VideoTokens) -> None:
    """A Chat kept an engine of its own and its session: nothing was freed, and it went on answering."""
    chat = own_lm.chat(video)
    chat.ask("Why?", options=LONG)
    finished, unbegun = own_lm.stream(video, "Why?", options=LONG), own_lm.stream(video, "Why?")
    finished.read()
    memory = Memory(own_lm, chat)
    assert len(memory.left) >= 6
    own_lm.close()
    assert memory.left == []
    assert len(chat.turns) == 1
    assert finished.answer.usage.num_new_tokens == 8
    unbegun.close()


CALLS: dict[str, Callable[..., object]] = {
    "ask": lambda lm, chat, stream, turn: lm.ask(FILM, "Why?"),
    "stream": lambda lm, chat, stream, turn: lm.stream(FILM, "Why?"),
    "ask_batch": lambda lm, chat, stream, turn: lm.ask_batch([(FILM, "Why?")]),
    "chat": lambda lm, chat, stream, turn: lm.chat(FILM),
    "encode": lambda lm, chat, stream, turn: lm.encode(FILM),
    "backend": lambda lm, chat, stream, turn: lm.backend,
    "chat.ask": lambda lm, chat, stream, turn: chat.ask("Why?"),
    "chat.stream": lambda lm, chat, stream, turn: chat.stream("Why?"),
    "stream-next": lambda lm, chat, stream, turn: next(stream),
    "stream-read": lambda lm, chat, stream, turn: stream.read(),
    "stream-answer": lambda lm, chat, stream, turn: stream.answer,
    "turn-next": lambda lm, chat, stream, turn: next(turn),
    "turn-read": lambda lm, chat, stream, turn: turn.read(),
}


@pytest.fixture(scope="module")
def closed(backend: str, bundle_path: Path) -> tuple[object, ...]:
    """A closed VideoLM, a chat of it, and a stream of each that was never begun."""
    with VideoLM.open(bundle_path, backend=backend, threads=1) as lm:
        chat = lm.chat(FILM)
        parts = lm, chat, lm.stream(FILM, "Why?"), chat.stream("Why?")
    lm.close()
    return parts


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_call_after_close_says_what_is_closed(closed: tuple[object, ...], call: Callable[..., object]) -> None:
    for _ in range(2):
        with pytest.raises(UsageError, match=r"the VideoLM is closed; open the bundle again with VideoLM\.open"):
            call(*closed)


@pytest.mark.parametrize("way", ["read", "close", "drop"])
@pytest.mark.parametrize("source", ["stream", "turn"])
def test_an_answer_in_progress_goes_to_its_end_and_the_model_with_it(
    own_lm: VideoLM, video: VideoTokens, source: str, way: str
) -> None:
    expected = own_lm.ask(video, "Why?", options=LONG)
    chat = own_lm.chat(video)
    stream = chat.stream("Why?", options=LONG) if source == "turn" else own_lm.stream(video, "Why?", options=LONG)
    next(stream)
    memory = Memory(own_lm, *([chat] if source == "turn" else []))
    own_lm.close()
    assert len(memory.left) >= 4
    with pytest.raises(UsageError, match="closed"):
        chat.ask("Now?")
    if way == "read":
        assert stream.read().token_ids == expected.token_ids
    elif way == "close":
        stream.close()
    else:
        del stream
    assert memory.left == []


def test_leaving_the_block_in_the_middle_of_a_turn_keeps_the_exception(own_lm: VideoLM, video: VideoTokens) -> None:
    """Chat.__exit__ raised "answering another question" in its place."""
    chat = own_lm.chat(video)
    stream = chat.stream("Why?", options=LONG)
    with pytest.raises(KeyError, match="ours"), own_lm, chat:
        raise KeyError(next(stream), "ours")
    assert stream.read().usage.num_new_tokens == 8
    assert chat._session is None
    with pytest.raises(UsageError, match="this conversation is closed; begin a new one"):
        chat.ask("Why?")


def test_a_dropped_chat_frees_its_cache(own_lm: VideoLM, video: VideoTokens) -> None:
    chat = own_lm.chat(video)
    chat.ask("Why?", options=LONG)
    session = weakref.ref(chat._session)
    del chat
    assert session() is None


def test_a_model_that_nobody_refers_to_is_freed_though_streams_and_chats_were_closed(
    backend: str, bundle_path: Path, video: VideoTokens
) -> None:
    lm = VideoLM.open(bundle_path, backend=backend, threads=1)
    chat, stream = lm.chat(video), lm.stream(video, "Why?", options=LONG)
    chat.ask("Why?", options=LONG)
    stream.read()
    memory = Memory(lm, chat)
    chat.close()
    del lm
    assert memory.left == []


def test_closing_while_threads_ask_gives_each_an_answer_or_the_error(own_lm: VideoLM, video: VideoTokens) -> None:
    expected = own_lm.ask(video, "Why?", options=LONG).token_ids
    memory, started, refused = Memory(own_lm), threading.Barrier(5), []

    def work(number: int) -> None:
        chat = own_lm.chat(video)
        started.wait()
        try:
            while True:
                fresh = number % 2 == 0
                ask: Callable[..., Any] = (lambda *a, **k: own_lm.ask(video, *a, **k)) if fresh else chat.ask
                answer = ask("Why?", options=LONG)
                assert not fresh or answer.token_ids == expected
                if len(chat.turns) == 4:
                    chat = own_lm.chat(video)
        except UsageError as error:
            refused.append(str(error))

    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(work, number) for number in range(4)]
        started.wait()
        own_lm.close()
        for job in jobs:
            job.result()
    assert len(refused) == 4
    assert memory.left == []


@pytest.mark.parametrize("call", ["lengths", "reserve", "prefill", "step", "truncate", "drop_row"])
def test_a_closed_session_is_our_error(make_decoder: DecoderMaker, call: str) -> None:
    """It was an assertion, which `python -O` leaves out."""
    session = make_decoder()[2].session(1, 8)
    session.prefill([np.ones((2, 64), np.float32)], Deadline())
    session.close()
    calls: dict[str, Callable[[], object]] = {
        "lengths": lambda: session.lengths,
        "reserve": lambda: session.reserve(4),
        "prefill": lambda: session.prefill([np.ones((2, 64), np.float32)], Deadline()),
        "step": lambda: session.step(np.ones((1, 64), np.float32)),
        "truncate": lambda: session.truncate(1),
        "drop_row": lambda: session.drop_row(0),
    }
    with pytest.raises(UsageError, match="the decoder session is closed"):
        calls[call]()


def test_closed_graphs_are_our_error(backend: str, make_decoder: DecoderMaker, bundle_path: Path) -> None:
    decoder = make_decoder()[2]
    decoder.close()
    with pytest.raises(UsageError, match="the decoder is closed"):
        decoder.session(1, 8)
    config = toy_config()
    graph = graph_file(bundle_path / "onnx" / "video_encoder.onnx", video_encoder_io(config))
    encoder = get_backend(backend).open_video_encoder(graph, threads=1)
    encoder.close()
    with pytest.raises(UsageError, match="the video encoder is closed"):
        encoder.run(np.ones((1, 4, 3, 16, 16), np.float32), Deadline())


@pytest.mark.parametrize("backend", ["openvino"], indirect=True)
def test_a_video_encoder_that_is_closed_during_a_run_keeps_nothing(backend: str, bundle_path: Path) -> None:
    """The run put its request, which holds the weights, back among the spare ones."""
    graph = graph_file(bundle_path / "onnx" / "video_encoder.onnx", video_encoder_io(toy_config()))
    encoder: Any = get_backend(backend).open_video_encoder(graph, threads=1)
    with encoder._request():
        encoder.close()
    assert encoder._spare == []


@pytest.mark.parametrize("failing", ["video_encoder", "decoder"])
def test_a_graph_that_does_not_open_closes_the_other(failing: str) -> None:
    """Both open at the same time, so that the other may be open already when one fails."""
    closed: list[str] = []

    class FakeGraph:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    class FakeBackend:
        def open(self, name: str) -> FakeGraph:
            if name == failing:
                raise BackendError(f"no {name}")
            return FakeGraph(name)

        def open_video_encoder(self, graph: object, threads: int | None) -> FakeGraph:
            return self.open("video_encoder")

        def open_decoder(self, graph: object, text: object, threads: int | None) -> FakeGraph:
            return self.open("decoder")

    names: tuple[Any, ...] = ("video_encoder", "decoder")
    backends: Any = dict.fromkeys(names, FakeBackend())
    engines = EngineChoice(backends=backends, threads=dict.fromkeys(names), tuning=None)
    with pytest.raises(BackendError, match=f"no {failing}"):
        _open_graphs(engines, dict.fromkeys(names), None)  # type: ignore[arg-type]
    assert closed == [name for name in names if name != failing]
