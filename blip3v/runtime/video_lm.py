"""``VideoLM``: open a bundle, ask questions about videos. The API that services embed."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import TracebackType

from blip3v.bundle.reader import open_bundle
from blip3v.errors import RequestError, UsageError
from blip3v.runtime.cancellation import CancelToken, Deadline
from blip3v.runtime.chat import Chat
from blip3v.runtime.checks import checked_path
from blip3v.runtime.estimate import OpenEstimate
from blip3v.runtime.generation import AnswerStream, answer_in_pieces, answer_together
from blip3v.runtime.gpu_array import DlpackArray
from blip3v.runtime.opening import estimate_open, open_model
from blip3v.runtime.owner import ModelOwner
from blip3v.runtime.request import GenerationOptions, Model, checked_options, checked_pairs, checked_prompt
from blip3v.runtime.types import Answer, BackendReport, Frame, VideoTokens
from blip3v.runtime.video_encoding import encode_pixels, encode_video
from blip3v.text.prompt import check_question
from blip3v.video.limits import VideoLimits
from blip3v.video.source import VideoInput
from blip3v.video.spare_decoder import SpareDecoder

__all__ = ["VideoLM"]


class VideoLM:
    """A video language model, opened from a bundle. Made by ``VideoLM.open``.

    One object may be used by several threads at once. They share the weights; each request has a cache of its own,
    and all caches together stay within ``max_cache_bytes``. After ``close`` every method raises ``UsageError``.
    """

    def __init__(self, model: Model) -> None:
        self._owner = ModelOwner(model)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        max_context: int | None = None,
        max_cache_bytes: int | None = None,
        limits: VideoLimits | None = None,
        allow_random: bool = False,
        on_estimate: Callable[[OpenEstimate], None] = lambda needed: None,
        decoder_ahead: bool = False,
    ) -> VideoLM:
        """Opens a bundle.

        Args:
            path: the bundle's folder.
            backend: the inference engine: "auto", a name such as "onnxruntime", "openvino" or "openvino:gpu" (with its
                device), or one for each graph, for example "video_encoder=openvino,decoder=onnxruntime". A decoder may
                have two, which share its cache: "decoder=openvino:cpu-bf16+onnxruntime" reads prompts with the first,
                in bf16, and takes the steps with the second; the weights are in memory twice, as they are with
                "decoder=onnxruntime:cpu-int8+onnxruntime", for which ``blip3v build`` makes them. "auto" takes what
                ``blip3v tune`` found to be the fastest on this machine, if neither ``device`` nor ``threads`` is
                given; else the fastest that is installed, by a fixed rule for each graph (``docs/backends.md``).
                ``backend`` of an answer says what was taken, and why.
            device: that both graphs have to run on: "cpu", "cuda" (an NVIDIA GPU), "gpu" or "npu" (Intel's, with
                OpenVINO), the second of a kind as in "gpu.1"; "auto": the CPU, or an NVIDIA GPU if an engine for it is
                installed and there is one.
            threads: threads inside an operator, at most the machine's logical CPUs; None: one for each physical core.
            max_context: at most this many tokens in a prompt and its answer, which bounds the caches; None: the
                model's own context.
            max_cache_bytes: at most this many bytes of keys and values for all unfinished answers, batches and
                conversations together, as they may become: prompt and ``max_new_tokens``. None: a third of the
                memory that is free once the weights are loaded, the GPU's if the caches lie there (of 6 GiB, where
                the system does not tell, as outside Linux), but at least one whole context. An answer that does not
                fit is refused, an ``ask_batch`` runs in parts.
            limits: what a video may cost; None: the usual limits.
            allow_random: open a bundle of random weights too, whose answers mean nothing.
            on_estimate: told what opening takes, before anything is loaded.
            decoder_ahead: start the process that is kept ahead for video files while the bundle is opened, for a caller
                who is about to load one; False: the second file starts it. It has no effect on answers, nor on Windows.

        Raises:
            ArtifactError: not a bundle, or one that is not as it was written.
            ProviderError: the engine is not installed, or installed twice, or does not run on ``device``.
            OutOfMemoryError: the model does not fit into the free memory of the machine or of the device.
            UsageError: a bundle of random weights, an unknown back end or device, ``threads`` below 1 or more than
                the logical CPUs, a ``max_context`` beyond the model's, a ``max_cache_bytes`` below 1, or a path that is
                not UTF-8.
        """
        if limits is not None and not isinstance(limits, VideoLimits):
            raise UsageError(f"limits has type {type(limits).__name__}; VideoLimits or None is expected")
        spare_decoder = SpareDecoder()
        try:
            if decoder_ahead:
                spare_decoder.start()
            model = open_model(
                checked_path("path", path),
                backend=backend,
                device=device,
                threads=threads,
                max_context=max_context,
                max_cache_bytes=max_cache_bytes,
                limits=VideoLimits() if limits is None else limits,
                allow_random=allow_random,
                on_estimate=on_estimate,
                spare_decoder=spare_decoder,
            )
        except BaseException:
            spare_decoder.close()
            raise
        return cls(model)

    @staticmethod
    def estimate(
        path: str | os.PathLike[str], *, backend: str = "auto", device: str = "auto", max_context: int | None = None
    ) -> OpenEstimate:
        """What ``open`` will take, which refuses what is more than the free memory. Arguments and errors as there."""
        return estimate_open(
            open_bundle(checked_path("path", path)), backend=backend, device=device, max_context=max_context
        )

    @property
    def backend(self) -> BackendReport:
        """What the graphs are computed with."""
        with self._owner.lease() as model:
            return model.backend

    @property
    def encoder(self) -> str:
        """Hash of the video encoder, which ``VideoTokens`` of this bundle name as theirs."""
        with self._owner.lease() as model:
            return model.encoder_hash

    def encode(
        self,
        video: VideoInput,
        *,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        timeout_s: float | None = None,
        cancel: CancelToken | None = None,
    ) -> VideoTokens:
        """Encodes a video once, for any number of questions.

        Args:
            video: a file's path, its bytes, a file object, or a URL, if the limits allow it; or pictures: a folder, a
                list or an iterator of image paths, PIL images and arrays, or all frames, uint8 (T,H,W,3) or (T,3,H,W).
            start: seconds from the first frame from which the clip is taken; None: from the first frame.
            end: seconds up to which it is taken; None: to the last frame.
            fps: frame rate of pictures, which have no times of their own; None: their frames have no times. Only for
                pictures.
            timeout_s: seconds that this may take; None: no limit of its own.
            cancel: cancels the call from another thread.

        Raises:
            UsageError: something that is not a video, times that no video has, or no Python to decode a file with.
            VideoError: the video cannot be used.
            CancelledError, RequestTimeoutError: it was cancelled, or took too long.
        """
        deadline = Deadline(timeout_s, cancel)
        with self._owner.lease() as model:
            return encode_video(model, video, start, end, fps, deadline)

    def encode_pixels(
        self,
        pixels: DlpackArray,
        *,
        frames: Sequence[Frame] | None = None,
        timeout_s: float | None = None,
        cancel: CancelToken | None = None,
    ) -> VideoTokens:
        """Encodes a clip whose frames are picked, resized and normalised already.

        Args:
            pixels: float16 or float32 (F,3,S,S) with the F frames and the side S of the bundle's config, as
                ``blip3v.video.preprocess`` and ``load_pixels`` make them: in [-1, 1] with the released mean and std. Of
                numpy, or of any library that speaks DLPack (torch, cupy). On the first CUDA GPU they are read where
                they are: the video encoder has to run there, and they have to be without gaps and of its own dtype;
                nobody looks at their values.
            frames: number and time in seconds of each frame, for the record; None: 0 to F - 1, without times.
            timeout_s: as for ``encode``.
            cancel: as for ``encode``.

        Raises:
            RequestError: pixels of another shape, dtype or range, or on a device that the video encoder does not read;
                CancelledError or RequestTimeoutError if it was cancelled or took too long.
            BackendError: the inference engine failed.
        """
        deadline = Deadline(timeout_s, cancel)
        with self._owner.lease() as model:
            return encode_pixels(model, pixels, frames, deadline)

    def ask(
        self,
        video: VideoInput | VideoTokens,
        question: str,
        *,
        options: GenerationOptions | None = None,
        system: str | None = None,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        cancel: CancelToken | None = None,
    ) -> Answer:
        """Answers a question about a video.

        Args:
            video: a video, or what ``encode`` or ``encode_pixels`` gave.
            question: plain text.
            options: how to answer; None: greedy, to the bundle's own limit of tokens.
            system: text of the system turn, which goes before the question; None: the model's own; blank: no such turn.
            start: as for ``encode``; not with ready video tokens.
            end: as for ``encode``; not with ready video tokens.
            fps: as for ``encode``; not with ready video tokens.
            cancel: cancels the request from another thread.

        Raises:
            VideoError: the video cannot be used.
            RequestError: a question that cannot be asked or is too long for the context, or video tokens of another
                encoder; CancelledError or RequestTimeoutError if it was cancelled or took too long.
            OutOfMemoryError: the cache does not fit into the free memory, or not into ``max_cache_bytes`` beside those
                of other unfinished answers.
            BackendError: the inference engine failed.
        """
        with self.stream(
            video, question, options=options, system=system, start=start, end=end, fps=fps, cancel=cancel
        ) as stream:
            return stream.read()

    def stream(
        self,
        video: VideoInput | VideoTokens,
        question: str,
        *,
        options: GenerationOptions | None = None,
        system: str | None = None,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
        cancel: CancelToken | None = None,
    ) -> AnswerStream:
        """Answers piece by piece: as ``ask``, with the video encoded when this returns and the pieces made on demand.

        Closing the stream ends the answer within one token. An answer that does not fit into memory is refused by the
        first ``next``; see ``AnswerStream``.
        """
        options = checked_options(options)
        check_question(question)
        deadline = Deadline(options.timeout_s, cancel)
        with self._owner.lease() as model:
            model.check_speculation(options)
            prompt = checked_prompt(model, question, options, system)
            tokens = _video_tokens(model, video, start, end, fps, deadline)
            request = model.first_request(tokens, prompt, options)
        return AnswerStream(answer_in_pieces(self._owner, request, deadline), self._owner.check_open)

    def ask_batch(
        self,
        requests: Sequence[tuple[VideoInput | VideoTokens, str]],
        *,
        options: GenerationOptions | None = None,
        system: str | None = None,
        cancel: CancelToken | None = None,
    ) -> list[Answer]:
        """Answers several questions together; each answer is the one that ``ask`` would give.

        As many run at a time as their caches fit into ``max_cache_bytes``, beside those of other unfinished answers.

        Args:
            requests: (video, question) pairs; a video that stands several times is encoded once. For a part of a
                video, or pictures with a frame rate, give what ``encode`` gave.
            options: of every answer. The time limit is for all together.
            system: of every answer, as for ``ask``.
            cancel: cancels all of them.

        Raises:
            RequestError: one of them cannot be answered; none is then.
            OutOfMemoryError: the longest does not fit into memory, even alone. Further errors as for ``ask``.
        """
        pairs = checked_pairs(requests)
        options = checked_options(options)
        if options.num_speculative_tokens:
            raise RequestError(
                f"num_speculative_tokens is {options.num_speculative_tokens}; it is for one answer at a time",
                remedy="leave out `num_speculative_tokens`, or ask one by one",
            )
        if not pairs:
            return []
        deadline = Deadline(options.timeout_s, cancel)
        with self._owner.lease() as model:
            prompts = [checked_prompt(model, question, options, system) for _, question in pairs]
            encoded: dict[object, VideoTokens] = {}
            prepared = []
            for (video, _), prompt in zip(pairs, prompts, strict=True):
                key = os.fspath(video) if isinstance(video, (str, os.PathLike)) else id(video)
                if key in encoded:
                    encoded[key] = encoded[key].without_timings()
                else:
                    encoded[key] = _video_tokens(model, video, None, None, None, deadline)
                prepared.append(model.first_request(encoded[key], prompt, options))
            return answer_together(model, prepared, deadline)

    def chat(
        self,
        video: VideoInput | VideoTokens,
        *,
        system: str | None = None,
        start: float | None = None,
        end: float | None = None,
        fps: float | None = None,
    ) -> Chat:
        """Begins a conversation about a video, which is encoded now. Arguments and errors as for ``ask``."""
        with self._owner.lease() as model:
            checked_prompt(model, "?", GenerationOptions(), system)
            tokens = _video_tokens(model, video, start, end, fps, Deadline(None, None))
        return Chat(self._owner, tokens, system)

    def close(self) -> None:
        """Refuses further calls, those of its conversations too, and frees their caches and the model.

        Answers in progress go to their end, streams that were begun among them; the model is freed with the last.
        May be called more than once.
        """
        self._owner.close()

    def __enter__(self) -> VideoLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _video_tokens(
    model: Model,
    video: VideoInput | VideoTokens,
    start: float | None,
    end: float | None,
    fps: float | None,
    deadline: Deadline,
) -> VideoTokens:
    if not isinstance(video, VideoTokens):
        return encode_video(model, video, start, end, fps, deadline)
    if start is not None or end is not None or fps is not None:
        raise RequestError("start, end and fps have no effect on ready video tokens; give them to encode")
    return video.without_timings()
