"""Answers from a bundle, through the runtime that users run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from blip3v.data.film import Film
from blip3v.data.questions import Question
from blip3v.data.samples import film_frames
from blip3v.runtime import VideoLM

__all__ = ["BundleAnswerer"]


class BundleAnswerer:
    """Answers greedily with a bundle. Close it, or use it as a context manager.

    Args:
        path: the bundle.
        backend: inference engine, as ``VideoLM.open`` accepts it.
        threads: threads of the inference engine; None: its own choice.
    """

    def __init__(self, path: Path, *, backend: str = "auto", threads: int | None = None) -> None:
        self._model = VideoLM.open(path, backend=backend, threads=threads)
        self.backend = self._model.backend  # what computes the answers

    def __enter__(self) -> BundleAnswerer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Frees the model."""
        self._model.close()

    def answer(self, film: Film, questions: Sequence[Question]) -> list[str]:
        """Returns one answer per question; the film is encoded only once."""
        every_frame = np.arange(film.num_frames)
        video = self._model.encode(np.stack(film_frames(film, every_frame)))
        return [self._model.ask(video, question.text).text for question in questions]
