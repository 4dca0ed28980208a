"""The real clip that every export is checked on: a film of the test set, encoded as H.264 and decoded again.

It goes through the file, the sampler and the preprocessor like a user's video, and needs no file outside the package.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.data.film import make_film
from blip3v.data.mp4 import write_mp4
from blip3v.data.questions import questions
from blip3v.text.generation import GenerationConfig
from blip3v.text.prompt import Prompt, build_prompt
from blip3v.text.template import Message
from blip3v.text.tokenizer import Tokenizer
from blip3v.video import PreprocessorConfig, load_pixels

__all__ = ["ParityClip", "film_clip", "film_prompt", "film_question"]

_SEED, _HEIGHT = 0, 240


@dataclass(frozen=True)
class ParityClip:
    """A decoded clip; ``facts`` is what the report says about it."""

    pixels_FCHW: NDArray[np.float32]  # in [-1, 1]
    facts: dict[str, Any]


def film_question() -> str:
    """Returns the question about the film, one that no single frame answers."""
    candidates = questions(make_film(_SEED, "test"))
    return next((question.text for question in candidates if question.needs_time), candidates[0].text)


def film_prompt(tokenizer: Tokenizer, template: str, generation: GenerationConfig) -> Prompt:
    """Returns the prompt that asks ``film_question``.

    Raises:
        ConfigError: the template fails.
    """
    return build_prompt(tokenizer, template, generation, [Message("user", film_question())])


def film_clip(num_frames: int, preprocessor: PreprocessorConfig) -> ParityClip:
    """Writes the film to a temporary file and loads ``num_frames`` of it.

    Raises:
        VideoError: this machine's PyAV cannot write or read H.264.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        write_mp4(make_film(_SEED, "test"), path, height=_HEIGHT)
        pixels_FCHW, clip = load_pixels(path, num_frames=num_frames, config=preprocessor)
    assert clip.duration_s is not None, "a film file has times"
    facts = {
        "film": f"test film {_SEED} of the film set, {clip.width}x{clip.height} H.264, {clip.duration_s:.1f} s",
        "frames": [{"index": frame.index, "time_s": frame.time_s} for frame in clip.sampled],
        "question": film_question(),
    }
    return ParityClip(pixels_FCHW, facts)
