"""A conversation about one video that keeps its keys and values between turns."""

from __future__ import annotations

import threading
from collections.abc import Generator
from types import TracebackType

from blip3v.errors import RequestError, UsageError
from blip3v.runtime.backends import PREFILL_CHUNK, DecoderSession
from blip3v.runtime.cache_budget import CacheShare
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.runtime.generation import AnswerStream, AnswerWriter, generate
from blip3v.runtime.owner import ModelOwner
from blip3v.runtime.request import GenerationOptions, Model, Request, checked_options, checked_prompt
from blip3v.runtime.types import Answer, Delta, VideoTokens

__all__ = ["Chat"]


class Chat:
    """Questions that know the earlier questions and answers. Each turn costs its own tokens only.

    A turn that fails, is cancelled, or whose stream is closed before its end is undone: the conversation is
    then as it was before. One turn runs at a time. Made by ``VideoLM.chat``.

    Between turns the cache of the conversation stays in memory and counts towards ``max_cache_bytes`` of
    ``VideoLM.open``. It is freed when the conversation or its ``VideoLM`` is closed, or nobody refers to the
    conversation any more.
    """

    def __init__(self, owner: ModelOwner, video: VideoTokens, system: str | None = None) -> None:
        self._owner: ModelOwner | None = owner  # None: closed
        self._video = video
        self._system = system
        self._turns: list[tuple[str, Answer]] = []
        self._num_held = 0  # tokens of the conversation that the session holds
        self._open_ids: list[int] = []  # tokens of the last answer that it does not hold
        self._session: DecoderSession | None = None
        self._share: CacheShare | None = None  # of the budget, for the session
        self._num_written = 0  # tokens that the session may have written, undone turns included
        self._busy = threading.Lock()
        owner.watch(self)

    @property
    def turns(self) -> tuple[tuple[str, Answer], ...]:
        """Questions and answers so far; they can be read after ``close`` too."""
        return tuple(self._turns)

    def ask(
        self, question: str, *, options: GenerationOptions | None = None, cancel: CancelToken | None = None
    ) -> Answer:
        """Answers the next question; see ``stream`` and ``VideoLM.ask`` for errors."""
        with self.stream(question, options=options, cancel=cancel) as stream:
            return stream.read()

    def stream(
        self, question: str, *, options: GenerationOptions | None = None, cancel: CancelToken | None = None
    ) -> AnswerStream:
        """Answers the next question piece by piece.

        Raises:
            RequestError: a question that cannot be asked, or one that is too long for the context. By the first
                ``next``: another turn is still running, or has changed the conversation since the stream was made.
            UsageError: the conversation or its ``VideoLM`` was closed.
        """
        options = checked_options(options)
        deadline = Deadline(options.timeout_s, cancel)
        owner = self._open_owner()
        number = len(self._turns)  # before the rest is read: a turn that ends meanwhile is then noticed
        with owner.lease() as model:
            request = self._prepare(model, question, options)
        return AnswerStream(self._turn(question, request, number, deadline), self._open_owner)

    def close(self) -> None:
        """Frees the cache; further turns are refused. A running turn goes to its end first. May be called again."""
        self._owner = None
        self.release_if_closed()

    def release_if_closed(self) -> None:
        """Frees the cache if the conversation or its model was closed, unless a turn is running, which does it then."""
        owner = self._owner
        if (owner is None or owner.closed) and self._busy.acquire(blocking=False):
            try:
                self._release()
            finally:
                self._busy.release()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_owner(self) -> ModelOwner:
        owner = self._owner
        if owner is None:
            raise UsageError("this conversation is closed; begin a new one with VideoLM.chat")
        owner.check_open()
        return owner

    def _prepare(self, model: Model, question: str, options: GenerationOptions) -> Request:
        model.check_speculation(options)
        if not self._turns:
            prompt = checked_prompt(model, question, options, self._system)
            return model.first_request(self._video, prompt, options)
        return model.next_request(self._video, self._num_held, self._open_ids, question, options)

    def _turn(self, question: str, request: Request, number: int, deadline: Deadline) -> Generator[Delta, None, Answer]:
        with self._open_owner().lease() as model:
            if not self._busy.acquire(blocking=False):
                raise RequestError(
                    "this conversation is answering another question; wait for its end or close its stream"
                )
            try:
                self._open_owner()  # it may have been closed meanwhile, and its cache freed
                if number != len(self._turns):
                    raise RequestError("the conversation has changed since this stream was made; ask again")
                return (yield from self._run(model, question, request, deadline))
            finally:
                self._busy.release()
                self.release_if_closed()

    def _run(self, model: Model, question: str, request: Request, deadline: Deadline) -> Generator[Delta, None, Answer]:
        writer = AnswerWriter(model.tokenizer, request)
        session, share = self._reserve(model, request.num_tokens)
        try:
            for _, delta in generate(session, [writer], model, deadline):
                yield delta
        finally:
            # A chunk that was interrupted may have been written.
            written = min(session.lengths[0] + PREFILL_CHUNK, request.num_tokens)
            if writer.finish_reason is None:
                self._undo(session)
            else:
                answer = writer.answer(model)
                self._num_held = session.lengths[0]
                # Guesses that were wrong lie behind.
                written = min(self._num_held + request.options.num_speculative_tokens, request.num_tokens)
                self._open_ids = writer.token_ids[self._num_held - request.num_prompt_tokens :]
                self._turns.append((question, answer))
                self._video = self._video.without_timings()
            self._num_written = max(self._num_written, written) if self._session is not None else 0
            share.resize(1, self._num_written)
        return answer

    def _reserve(self, model: Model, num_tokens: int) -> tuple[DecoderSession, CacheShare]:
        """The conversation's session with room for ``num_tokens``; if that is refused, all stays as it was."""
        session, share = self._session, self._share
        if session is None or share is None:
            share = model.caches.take(1, num_tokens)
            try:
                session = model.decoder.session(1, num_tokens)
            except BaseException:
                share.close()
                raise
            self._session, self._share = session, share
            return session, share
        share.resize(1, max(num_tokens, self._num_written))
        try:
            session.reserve(num_tokens)
        except BaseException:
            share.resize(1, self._num_written)
            raise
        return session, share

    def _undo(self, session: DecoderSession) -> None:
        """Takes back what a turn that did not end has added."""
        if self._turns:
            session.truncate(self._num_held)
        else:
            self._release()

    def _release(self) -> None:
        """Frees the cache; the next turn, if there are none yet, makes a new one."""
        session, share = self._session, self._share
        self._session = self._share = None
        if session is not None:
            session.close()
        if share is not None:
            share.close()
