"""What answers a benchmark's questions: a bundle through the runtime that users run, or a model folder in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from blip3v.bundle import layout
from blip3v.runtime import GenerationOptions, VideoLM
from blip3v.text import GenerationConfig, Tokenizer
from blip3v.video import VideoInput, load_clip, preprocess

if TYPE_CHECKING:
    from blip3v.evaluation.reference import ReferenceModel

__all__ = ["BundleClips", "ClipAnswerer", "EncodedClip", "ReferenceClips"]

_NUM_FIRST_TOKENS = 20  # as many as the runtime gives


@dataclass(frozen=True, eq=False)
class EncodedClip:
    """A clip that questions can be asked about."""

    video: Any  # what the answerer that made it takes
    frames: tuple[int, ...]  # numbers of the frames that it was made of


class ClipAnswerer(Protocol):
    """Answers questions about clips, greedily."""

    @property
    def computed(self) -> str:
        """Dtype, engine and device, for the record."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Of what computes."""

    def encode(self, video: VideoInput, start_s: float | None = None, end_s: float | None = None) -> EncodedClip:
        """Reads and encodes a clip.

        Raises:
            VideoError, UsageError: it cannot be read.
        """

    def answer(
        self,
        clips: Sequence[EncodedClip],
        questions: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """Answers each question about its clip.

        Args:
            clips: one for each question.
            questions: plain text.
            max_new_tokens: of an answer; None, or more than the model's own limit: that limit.
            stop: texts before the first of which an answer ends.

        Raises:
            RequestError: one of them cannot be asked.
        """

    def first_tokens(self, clips: Sequence[EncodedClip], questions: Sequence[str]) -> list[dict[str, float]]:
        """The texts of the likeliest first tokens of each answer, without white space, with their log-probabilities.

        Raises:
            RequestError: one of them cannot be asked.
        """


class BundleClips:
    """A bundle, in any precision. Close it, or use it as a context manager.

    Args:
        path: the bundle.
        backend: inference engine, as ``VideoLM.open`` accepts it.
    """

    def __init__(self, path: Path, *, backend: str = "auto") -> None:
        self._model = VideoLM.open(path, backend=backend)
        self._tokenizer = Tokenizer.load(path / layout.TOKENIZER)
        self._own_limit = GenerationConfig.load(path / layout.GENERATION).max_new_tokens
        report = self._model.backend
        self.computed = report.computed
        self.versions = {run.engine: run.version or "?" for run in (report.video_encoder, report.decoder)}

    def __enter__(self) -> BundleClips:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._model.close()

    def encode(self, video: VideoInput, start_s: float | None = None, end_s: float | None = None) -> EncodedClip:
        """See ``ClipAnswerer``."""
        tokens = self._model.encode(video, start=start_s, end=end_s)
        return EncodedClip(tokens, tuple(index for index, _ in tokens.frames))

    def answer(
        self,
        clips: Sequence[EncodedClip],
        questions: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """See ``ClipAnswerer``."""
        pairs = [(clip.video, question) for clip, question in zip(clips, questions, strict=True)]
        limit = max_new_tokens if max_new_tokens is not None and max_new_tokens < self._own_limit else None
        options = GenerationOptions(max_new_tokens=limit, stop=tuple(stop))
        return [answer.text for answer in self._model.ask_batch(pairs, options=options)]

    def first_tokens(self, clips: Sequence[EncodedClip], questions: Sequence[str]) -> list[dict[str, float]]:
        """See ``ClipAnswerer``."""
        pairs = [(clip.video, question) for clip, question in zip(clips, questions, strict=True)]
        options = GenerationOptions(max_new_tokens=1, logprobs=_NUM_FIRST_TOKENS, ignore_stop_token=True)
        answers = self._model.ask_batch(pairs, options=options)
        return [_by_text(self._tokenizer, answer.logprobs[0].top if answer.logprobs else ()) for answer in answers]


class ReferenceClips:
    """A model folder in PyTorch fp32.

    Args:
        path: the model folder.
        device: "cpu" or "cuda".
    """

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        import torch  # it takes seconds, and a bundle needs none of it

        from blip3v.evaluation.reference import ReferenceModel

        self._model: ReferenceModel = ReferenceModel(path, device=device)
        self.computed = f"fp32 on PyTorch {device}"
        self.versions = {"torch": str(torch.__version__)}

    def encode(self, video: VideoInput, start_s: float | None = None, end_s: float | None = None) -> EncodedClip:
        """See ``ClipAnswerer``."""
        model = self._model
        rule = model.preprocessor.sampling
        clip = load_clip(video, num_frames=model.num_frames, rule=rule, start_s=start_s, end_s=end_s)
        pixels_TCHW = preprocess(clip.frames, model.preprocessor)
        return EncodedClip(model.encode(pixels_TCHW), tuple(frame.index for frame in clip.sampled))

    def answer(
        self,
        clips: Sequence[EncodedClip],
        questions: Sequence[str],
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
    ) -> list[str]:
        """See ``ClipAnswerer``."""
        videos = [clip.video for clip in clips]
        texts = self._model.answer(videos, questions, max_new_tokens=max_new_tokens)
        return [text[: min((text.find(end) for end in stop if end in text), default=None)].strip() for text in texts]

    def first_tokens(self, clips: Sequence[EncodedClip], questions: Sequence[str]) -> list[dict[str, float]]:
        """See ``ClipAnswerer``."""
        tokens = self._model.first_tokens([clip.video for clip in clips], questions, _NUM_FIRST_TOKENS)
        return [_by_text(self._model.tokenizer, of_one) for of_one in tokens]


def _by_text(tokenizer: Tokenizer, tokens: Sequence[tuple[int, float]]) -> dict[str, float]:
    """Tokens of one text, such as a letter with and without a space before it, count together."""
    texts: dict[str, float] = {}
    for token_id, logprob in tokens:
        text = tokenizer.decode([token_id]).strip()
        texts[text] = float(np.logaddexp(texts.get(text, -np.inf), logprob))
    return texts
