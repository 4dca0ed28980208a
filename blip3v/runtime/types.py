"""The runtime's inputs and outputs: encoded videos, pieces of text, answers."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from blip3v.errors import ArtifactError, ArtifactMissingError, RequestError
from blip3v.publishing import write_file
from blip3v.runtime.backends import Execution
from blip3v.runtime.checks import shown
from blip3v.runtime.gpu_array import GpuArray, as_array

__all__ = [
    "Answer",
    "BackendReport",
    "Delta",
    "FinishReason",
    "Frame",
    "Timings",
    "TokenLogprob",
    "Usage",
    "VideoTokens",
    "is_frame",
]

FinishReason = Literal["stop", "length"]
# Number of the frame in its file, from 0, and its time in seconds; None for pictures without a frame rate.
Frame = tuple[int, float | None]

_FORMAT = "blip3v.video_tokens.1"


@dataclass(frozen=True)
class Delta:
    """A piece of an answer. The pieces joined are the answer's text.

    Attributes:
        text: text that is certain by now; may be empty while a character or a stop text is open.
        token_id: the token that brought it; None for text that was held back and comes out at the end.
    """

    text: str
    token_id: int | None


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Positions of the context that an answer took."""

    num_prompt_tokens: int  # everything before the answer: text, video tokens and, in a chat, earlier turns
    num_video_tokens: int  # of these, video tokens
    num_new_tokens: int


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of each stage; 0 if it did not run, as the video's stages for ready video tokens.

    In a batch, ``prefill_s`` is that of all that ran together, and a step counts for each row that took part in it.
    """

    file_decode_s: float
    preprocess_s: float  # after the last frame was decoded: frames of a file are resized while others are decoded
    encode_s: float
    prefill_s: float
    steps_s: float  # all decoding steps
    num_steps: (
        int  # runs of the decoder; without speculation one less than the tokens chosen, since the prefill has one
    )
    num_draft_tokens: int = 0  # guessed by speculation
    num_accepted_tokens: int = 0  # of these, right ones, each of which saved a step

    @property
    def per_token_s(self) -> float:
        """Mean time of a token after the first; 0 if there was none."""
        num_tokens = self.num_steps + self.num_accepted_tokens
        return self.steps_s / num_tokens if num_tokens else 0.0


@dataclass(frozen=True)
class TokenLogprob:
    """Natural log-probability of a chosen token under the model itself, before temperature and filters."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, log-probability) of the most likely ones, best first


@dataclass(frozen=True, kw_only=True)
class BackendReport:
    """What an opened bundle is really computed with."""

    stored: str  # precision of the stored weights
    video_encoder: Execution
    decoder: Execution
    tuning: str | None = None  # what a tuning of this machine decided, or why it was passed over; None: nothing

    @property
    def computed(self) -> str:
        """Dtype, engine and device, once if both graphs share them."""
        if str(self.video_encoder) == str(self.decoder):
            return str(self.decoder)
        return f"{self.video_encoder} (video encoder) and {self.decoder} (decoder)"

    def __str__(self) -> str:
        tuning = f"; {self.tuning}" if self.tuning else ""
        return f"stored {self.stored}, computed {self.computed}{tuning}"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer, and what it was made from."""

    text: str  # without white space around it, cut before a stop text
    token_ids: tuple[int, ...]  # new tokens in order; the stop token that ended the answer is left out
    finish_reason: FinishReason  # "stop": stop token or stop text; "length": max_new_tokens
    frames: tuple[Frame, ...]  # the frames that the model saw
    usage: Usage
    timings: Timings
    backend: BackendReport  # what computed it
    logprobs: tuple[TokenLogprob, ...] | None  # one for each of token_ids, if requested

    @property
    def num_different_frames(self) -> int:
        """Different frames among ``frames``: fewer than these if the clip is short (``docs/frames.md``)."""
        return _num_different(self.frames)


@dataclass(frozen=True, eq=False)
class VideoTokens:
    """An encoded video: all that questions about it need.

    ``encode`` makes it. Tokens of your own pipeline may be an array of any library that speaks DLPack (torch, cupy). In
    host memory they are copied. On the first CUDA GPU they stay where they are: the decoder has to run there, take
    their dtype, and reads them with each first question, so they must not change; nothing looks at their values, and
    those that are not finite end an answer with a ``BackendError``.

    Attributes:
        tokens: (M,D) float16 or float32, M and D at least 1. A read-only numpy array, since requests share it; of an
            array on a GPU an object with ``shape``, ``dtype`` and ``__dlpack__``.
        frames: the frames that it was made of.
        encoder: hash of the video encoder that made it; another encoder refuses it.
        file_decode_s: seconds that reading and decoding the file took; 0 after ``load``.
        preprocess_s: seconds that resizing took after the last frame was decoded; 0 after ``load``.
        encode_s: seconds that the video encoder took; 0 after ``load``.

    Raises:
        RequestError: tokens, frames or encoder of another form. ``ask`` refuses tokens that are not finite.
    """

    tokens: Any  # NDArray[Any] or GpuArray
    frames: tuple[Frame, ...]
    encoder: str
    file_decode_s: float = 0.0
    preprocess_s: float = 0.0
    encode_s: float = 0.0

    def __post_init__(self) -> None:
        tokens = as_array("tokens", self.tokens, "an array (M, D) is expected, as encode makes it")
        shape = tuple(tokens.shape)
        if len(shape) != 2 or 0 in shape or str(tokens.dtype) not in ("float16", "float32"):
            raise RequestError(f"tokens is {tokens.dtype} of shape {shape}; float16 or float32 (M, D) is expected")
        if not isinstance(self.frames, tuple) or not all(map(is_frame, self.frames)):
            raise RequestError(f"frames is {shown(self.frames)}; a tuple of (number, time in seconds) is expected")
        if not isinstance(self.encoder, str):
            raise RequestError(f"encoder is {shown(self.encoder)}; the hash of a video encoder is expected")
        if isinstance(tokens, np.ndarray) and (tokens.flags.writeable or not tokens.flags.owndata):
            tokens = tokens.copy()  # somebody may change the memory
            tokens.flags.writeable = False
        object.__setattr__(self, "tokens", tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_different_frames(self) -> int:
        """Different frames among ``frames``: fewer than these if the clip is short (``docs/frames.md``)."""
        return _num_different(self.frames)

    def without_timings(self) -> VideoTokens:
        """The same tokens for another request, which did not spend the time to encode them."""
        return dataclasses.replace(self, file_decode_s=0.0, preprocess_s=0.0, encode_s=0.0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a safetensors file atomically. Tokens on a GPU are copied to the host for that.

        Raises:
            RequestError: the library that holds tokens on a GPU makes no copy in host memory.
            ArtifactError: the file cannot be written.
        """
        tokens: NDArray[Any] | GpuArray = self.tokens
        tokens_MD = tokens.on_host() if isinstance(tokens, GpuArray) else tokens
        metadata = {"format": _FORMAT, "encoder": self.encoder, "frames": json.dumps(self.frames)}
        data = safetensors.numpy.save({"video_tokens": np.ascontiguousarray(tokens_MD)}, metadata)
        try:
            write_file(Path(path), data)
        except OSError as error:
            raise ArtifactError(f"{path} cannot be written: {error}") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> VideoTokens:
        """Reads what ``save`` wrote.

        Raises:
            ArtifactMissingError: no such file.
            ArtifactError: another kind of file, or values that are not finite.
        """
        source = Path(path)
        if not source.is_file():
            raise ArtifactMissingError(f"{source} is not there; VideoTokens.save writes such a file")
        try:
            with safetensors.safe_open(source, framework="numpy") as file:
                metadata = file.metadata() or {}
                names = list(file.keys())
                if metadata.get("format") != _FORMAT or names != ["video_tokens"]:
                    raise ArtifactError(f"{source} holds no video tokens; VideoTokens.save writes such a file")
                tokens = file.get_tensor("video_tokens")
            frames = tuple(_frame(index, time_s) for index, time_s in json.loads(metadata["frames"]))
            encoder = metadata["encoder"]
        except (safetensors.SafetensorError, OSError, KeyError, ValueError, TypeError, RecursionError) as error:
            raise ArtifactError(f"{source} is not a file of video tokens: {error}") from error
        try:
            video = cls(tokens, frames, encoder)
        except RequestError as error:
            raise ArtifactError(f"{source} is not a file of video tokens: {error}") from error
        if not np.isfinite(tokens).all():
            raise ArtifactError(f"{source} holds values that are not finite; encode the video again")
        return video


def is_frame(frame: object) -> bool:
    """Whether ``frame`` has the form of a ``Frame``."""
    if not isinstance(frame, tuple) or len(frame) != 2:
        return False
    return type(frame[0]) is int and (frame[1] is None or isinstance(frame[1], int | float))


def _frame(index: object, time_s: object) -> Frame:
    """A frame as ``save`` wrote it."""
    return int(index), None if time_s is None else float(time_s)  # type: ignore[call-overload,arg-type]


def _num_different(frames: tuple[Frame, ...]) -> int:
    return len({index for index, _ in frames})
