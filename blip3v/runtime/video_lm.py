"""``VideoLM``: open a bundle, ask questions about videos. The API that services embed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from types import TracebackType

from blip3v.bundle.reader import open_bundle
from blip3v.errors import RequestError, UsageError
from blip3v.runtime.chat import Chat
from blip3v.runtime.clips import encode_video
from blip3v.runtime.engine import Engine, PreparedRequest
from blip3v.runtime.loading import OpenEstimate, estimate_open, open_engine
from blip3v.runtime.options import CancelToken, Control, GenerationOptions
from blip3v.runtime.stream import AnswerStream
from blip3v.runtime.types import Answer, Delta, VideoTokens
from blip3v.video.limits import VideoLimits
from blip3v.video.source import VideoInput

__all__ = ["VideoLM"]


class VideoLM:
    """A video language model, opened from a bundle. Made by ``VideoLM.open``.

    One object may be used by several threads at once. They share the weights; each request has a cache of its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._lock = threading.Lock()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        threads: int | None = None,
        max_context: int | None = None,
        limits: VideoLimits | None = None,
        allow_random: bool = False,
        on_estimate: Callable[[OpenEstimate], None] = lambda needed: None,
    ) -> VideoLM:
        """Opens a bundle.

        Args:
            path: the bundle's folder.
            device: "auto" or "cpu": both are the CPU.
            threads: threads inside an operator; None: ONNX Runtime's choice, one for each physical core.
            max_context: tokens of a prompt with its answer at most, which bounds the caches; None: the model's own.
            limits: what a video may cost; None: the usual limits.
            allow_random: open a bundle of random weights too, whose answers mean nothing.
            on_estimate: told what opening takes, before anything is loaded.

        Raises:
            ArtifactError: not a bundle, or one that is not as it was written.
            ProviderError: ONNX Runtime is not installed, or twice, or does not run on ``device``.
            OutOfMemoryError: the model does not fit into the free memory.
            UsageError: a bundle of random weights, an unknown device, ``threads`` below 1, or a ``max_context`` that is
                more than the model's.
        """
        engine = open_engine(
            path,
            device=device,
            threads=threads,
            max_context=max_context,
            limits=VideoLimits() if limits is None else limits,
            allow_random=allow_random,
            on_estimate=on_estimate,
        )
        return cls(engine)

    @staticmethod
    def estimate(path: str | os.PathLike[str], *, max_context: int | None = None) -> OpenEstimate:
        """What ``open`` will take; ``open`` itself refuses where that is more than what is free.

        Args:
            path: the bundle's folder.
            max_context: as for ``open``.

        Raises:
            ArtifactError: not a bundle, or one that is not as it was written.
            UsageError: a ``max_context`` that is more than the model's.
        """
        return estimate_open(open_bundle(Path(path)), max_context)

    def encode(
        self,
        video: VideoInput,
        *,
        start: float | None = None,
        end: float | None = None,
        timeout_s: float | None = None,
        cancel: CancelToken | None = None,
    ) -> VideoTokens:
        """Encodes a video once, for any number of questions.

        Args:
            video: a file's path, its bytes, a file object, pictures, or frames as uint8 (T,H,W,3).
            start: seconds from the first frame from which the clip is taken; None: from the first frame.
            end: seconds up to which it is taken; None: to the last frame.
            timeout_s: seconds that this may take; None: no limit of its own.
            cancel: takes the call back.

        Raises:
            VideoError: the video cannot be used.
            CancelledError, RequestTimeoutError: it was taken back, or took too long.
        """
        return encode_video(self._open_engine(), video, start, end, Control(timeout_s, cancel))

    def ask(
        self,
        video: VideoInput | VideoTokens,
        question: str,
        *,
        options: GenerationOptions | None = None,
        start: float | None = None,
        end: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        """Answers a question about a video.

        Args:
            video: a video, or what ``encode`` gave.
            question: plain text.
            options: how to answer; None: greedy, to the bundle's own limit of tokens.
            start: as for ``encode``; not with ready video tokens.
            end: as for ``encode``; not with ready video tokens.
            cancel: takes the request back from another thread.

        Raises:
            VideoError: the video cannot be used.
            RequestError: a question that cannot be asked or is too long for the context, or video tokens of another
                encoder; CancelledError and RequestTimeoutError where it was taken back or took too long.
            BackendError: the inference engine failed.
        """
        with self.stream(video, question, options=options, start=start, end=end, cancel=cancel) as stream:
            return stream.read()

    def stream(
        self,
        video: VideoInput | VideoTokens,
        question: str,
        *,
        options: GenerationOptions | None = None,
        start: float | None = None,
        end: float | None = None,
        cancel: CancelToken | None = None,
    ) -> AnswerStream:
        """Answers piece by piece: as ``ask``, with the video encoded when this returns and the pieces made on demand.

        Closing the stream ends the answer within one token.
        """
        options = options or GenerationOptions()
        control = Control(options.timeout_s, cancel)
        engine = self._open_engine()
        tokens = _video_tokens(engine, video, start, end, control)
        return AnswerStream(_pieces(engine, engine.first_request(tokens, question, options), control))

    def ask_batch(
        self,
        requests: Sequence[tuple[VideoInput | VideoTokens, str]],
        *,
        options: GenerationOptions | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Answer]:
        """Answers several questions together; each answer is the one that ``ask`` would give.

        Args:
            requests: (video, question) pairs; a video that stands several times is encoded once.
            options: of every answer. The time limit is for all together.
            cancel: takes all of them back.

        Raises:
            RequestError: one of them cannot be answered; none is then. Further errors as for ``ask``.
        """
        if not requests:
            return []
        options = options or GenerationOptions()
        control = Control(options.timeout_s, cancel)
        engine = self._open_engine()
        encoded: dict[object, VideoTokens] = {}
        prepared = []
        for video, question in requests:
            key = os.fspath(video) if isinstance(video, (str, os.PathLike)) else id(video)
            if key in encoded:
                encoded[key] = encoded[key].without_timings()
            else:
                encoded[key] = _video_tokens(engine, video, None, None, control)
            prepared.append(engine.first_request(encoded[key], question, options))
        return _answer_all(engine, prepared, control)

    def chat(
        self,
        video: VideoInput | VideoTokens,
        *,
        start: float | None = None,
        end: float | None = None,
    ) -> Chat:
        """Begins a conversation about a video, which is encoded now. Arguments and errors as for ``encode``."""
        engine = self._open_engine()
        return Chat(engine, _video_tokens(engine, video, start, end, Control(None, None)))

    def close(self) -> None:
        """Lets the model go. Answers that are being written end as usual; further calls are refused."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.decoder.close()

    def __enter__(self) -> VideoLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open_engine(self) -> Engine:
        engine = self._engine
        if engine is None:
            raise UsageError("this VideoLM is closed; open the bundle again with VideoLM.open")
        return engine


def _video_tokens(
    engine: Engine, video: VideoInput | VideoTokens, start: float | None, end: float | None, control: Control
) -> VideoTokens:
    if not isinstance(video, VideoTokens):
        return encode_video(engine, video, start, end, control)
    if start is not None or end is not None:
        raise RequestError("start and end have no effect on ready video tokens; give them to encode")
    return video.without_timings()


def _pieces(engine: Engine, request: PreparedRequest, control: Control) -> Generator[Delta, None, Answer]:
    writer = engine.writer(request)
    cache = engine.decoder.take_cache(1, request.needed_tokens)
    try:
        for _, delta in engine.run(cache, [request], control, [writer]):
            yield delta
    finally:
        engine.decoder.give_back(cache)
    return engine.answer(request, writer)


def _answer_all(engine: Engine, requests: list[PreparedRequest], control: Control) -> list[Answer]:
    writers = [engine.writer(request) for request in requests]
    cache = engine.decoder.take_cache(len(requests), max(request.needed_tokens for request in requests))
    try:
        for _ in engine.run(cache, requests, control, writers):
            pass
    finally:
        engine.decoder.give_back(cache)
    return [engine.answer(request, writer) for request, writer in zip(requests, writers, strict=True)]
