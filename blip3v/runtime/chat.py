"""A conversation about one video that keeps its keys and values between turns."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType

from blip3v.errors import RequestError, UsageError
from blip3v.runtime.backends import DecoderSession
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.runtime.generation import AnswerStream, AnswerWriter, generate
from blip3v.runtime.request import GenerationOptions, Model, Request, checked_options
from blip3v.runtime.types import Answer, Delta, VideoTokens

__all__ = ["Chat"]


class Chat:
    """Questions that know the earlier questions and answers. Each turn costs its own tokens only.

    A turn that fails, is cancelled, or whose stream is closed before its end is undone: the conversation is
    then as it was before. One turn runs at a time. Made by ``VideoLM.chat``.
    """

    def __init__(self, model: Model, video: VideoTokens, system: str | None = None) -> None:
        self._model: Model | None = model
        self._video = video
        self._system = system
        self._session: DecoderSession | None = None
        self._turns: list[tuple[str, Answer]] = []
        self._open_ids: list[int] = []  # tokens of the last answer that the session does not hold
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
        options = checked_options(options)
        deadline = Deadline(options.timeout_s, cancel)
        model = self._open_model()
        request = self._prepare(model, question, options)
        return AnswerStream(self._turn(model, question, request, len(self._turns), deadline))

    def close(self) -> None:
        """Frees the memory. May be called more than once; a running turn must have ended.

        Raises:
            RequestError: a turn is still running.
        """
        self._acquire_turn()
        try:
            if self._session is not None:
                self._session.close()
            self._model = self._session = None
        finally:
            self._busy.release()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_model(self) -> Model:
        if self._model is None:
            raise UsageError("this conversation is closed; begin a new one with VideoLM.chat")
        return self._model

    def _prepare(self, model: Model, question: str, options: GenerationOptions) -> Request:
        if not self._turns:
            return model.first_request(self._video, question, options, self._system)
        assert self._session is not None
        return model.next_request(self._video, self._session.lengths[0], self._open_ids, question, options)

    def _turn(
        self, model: Model, question: str, request: Request, number: int, deadline: Deadline
    ) -> Generator[Delta, None, Answer]:
        self._acquire_turn()
        try:
            if number != len(self._turns) or self._model is None:
                raise RequestError("the conversation has changed since this stream was made; ask again")
            return (yield from self._run(model, question, request, deadline))
        finally:
            self._busy.release()

    def _run(self, model: Model, question: str, request: Request, deadline: Deadline) -> Generator[Delta, None, Answer]:
        if self._session is None:
            self._session = model.decoder.session(1, request.num_tokens)
        session = self._session
        session.reserve(request.num_tokens)
        writer = AnswerWriter(model.tokenizer, request)
        try:
            for _, delta in generate(session, [writer], model.embed, deadline):
                yield delta
        finally:
            if writer.finish_reason is None:
                session.truncate(request.num_earlier)
            else:
                answer = writer.answer(model)
                self._open_ids = writer.token_ids[session.lengths[0] - request.num_prompt_tokens :]
                self._turns.append((question, answer))
                self._video = self._video.without_timings()
        return answer

    def _acquire_turn(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise RequestError("this conversation is answering another question; wait for its end or close its stream")
