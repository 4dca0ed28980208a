"""A conversation about one video that keeps its keys and values between turns."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType

from blip3v.errors import RequestError, UsageError
from blip3v.runtime.engine import Engine, PreparedRequest
from blip3v.runtime.kv_cache import KVCache
from blip3v.runtime.options import CancelToken, Control, GenerationOptions
from blip3v.runtime.stream import AnswerStream
from blip3v.runtime.types import Answer, Delta, VideoTokens

__all__ = ["Chat"]


class Chat:
    """Questions that know the earlier questions and answers. Each turn costs its own tokens only.

    A turn that fails, is cancelled, or whose stream is closed before its end is taken back whole: the conversation is
    then as it was before. One turn runs at a time. Made by ``VideoLM.chat``.
    """

    def __init__(self, engine: Engine, video: VideoTokens) -> None:
        self._engine: Engine | None = engine
        self._video = video
        self._cache: KVCache | None = None
        self._turns: list[tuple[str, Answer]] = []
        self._open_ids: list[int] = []  # tokens of the last answer that the cache does not hold
        self._busy = threading.Lock()

    @property
    def turns(self) -> tuple[tuple[str, Answer], ...]:
        """Questions and answers so far."""
        return tuple(self._turns)

    def ask(
        self, question: str, *, options: GenerationOptions | None = None, cancel: CancelToken | None = None
    ) -> Answer:
        """Answers the next question; see ``VideoLM.ask`` for errors."""
        with self.stream(question, options=options, cancel=cancel) as stream:
            return stream.read()

    def stream(
        self, question: str, *, options: GenerationOptions | None = None, cancel: CancelToken | None = None
    ) -> AnswerStream:
        """Answers the next question piece by piece.

        Raises:
            RequestError: a question that cannot be asked, one that is too long for the context, or another turn that
                is still running.
            UsageError: the conversation was closed.
        """
        options = options or GenerationOptions()
        control = Control(options.timeout_s, cancel)
        engine = self._open_engine()
        request = self._prepare(engine, question, options)
        return AnswerStream(self._turn(engine, question, request, len(self._turns), control))

    def close(self) -> None:
        """Gives the memory back. May be called more than once; a running turn must have ended.

        Raises:
            RequestError: a turn is still running.
        """
        self._take_turn()
        try:
            if self._engine is not None and self._cache is not None:
                self._engine.decoder.give_back(self._cache)
            self._engine = self._cache = None
        finally:
            self._busy.release()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_engine(self) -> Engine:
        if self._engine is None:
            raise UsageError("this conversation is closed; begin a new one with VideoLM.chat")
        return self._engine

    def _prepare(self, engine: Engine, question: str, options: GenerationOptions) -> PreparedRequest:
        if not self._turns:
            return engine.first_request(self._video, question, options)
        assert self._cache is not None
        return engine.next_request(self._video, self._cache.lengths[0], self._open_ids, question, options)

    def _turn(
        self, engine: Engine, question: str, request: PreparedRequest, number: int, control: Control
    ) -> Generator[Delta, None, Answer]:
        self._take_turn()
        try:
            if number != len(self._turns) or self._engine is None:
                raise RequestError("the conversation has changed since this stream was made; ask again")
            return (yield from self._run(engine, question, request, control))
        finally:
            self._busy.release()

    def _run(
        self, engine: Engine, question: str, request: PreparedRequest, control: Control
    ) -> Generator[Delta, None, Answer]:
        if self._cache is None:
            self._cache = engine.decoder.take_cache(1, request.needed_tokens)
        cache = self._cache
        cache.reserve(request.needed_tokens)
        writer = engine.writer(request)
        try:
            for _, delta in engine.run(cache, [request], control, [writer]):
                yield delta
        finally:
            if writer.finish_reason is None:
                cache.lengths[0] = request.earlier_tokens
            else:
                answer = engine.answer(request, writer)
                self._open_ids = writer.token_ids[cache.lengths[0] - request.prompt_tokens :]
                self._turns.append((question, answer))
                self._video = self._video.without_timings()
        return answer

    def _take_turn(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RequestError("this conversation is answering another question; wait for its end or close its stream")
