"""Training samples from a user's own films: the authors' JSON list."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from blip3v.data.authors import ClipSample, read_samples
from blip3v.data.samples import Frames, Pair
from blip3v.errors import ConfigError
from blip3v.video import load_clip

__all__ = ["ClipSource", "open_clips"]


@dataclass(frozen=True)
class ClipSource:
    """A user's own clips: the authors' JSON list (``authors.py``).

    Attributes:
        samples: what ``read_samples`` gave.
        path: the JSON file, for the key.
        num_frames: frames of a clip.
        seed: of the random start of the training sampling rule.
    """

    samples: tuple[ClipSample, ...]
    path: str
    num_frames: int
    seed: int

    @property
    def key(self) -> str:
        """The file, and the seed of the sampling."""
        return f"{self.path}-{len(self.samples)}x{self.num_frames}-seed{self.seed}"

    def __len__(self) -> int:
        return len(self.samples)

    def frames(self, index: int, visit: int) -> list[Frames]:
        """Frames by the sampling rule of training, anew at every visit."""
        sample = self.samples[index]
        seed = int(np.random.SeedSequence((self.seed, index, visit)).generate_state(1)[0])
        clip = load_clip(
            sample.video,
            num_frames=self.num_frames,
            rule="train",
            start_s=sample.start_s,
            end_s=sample.end_s,
            seed=seed,
        )
        return list(clip.frames)

    def pairs(self, index: int, visit: int) -> tuple[Pair, ...]:
        """The first question and its answer at each visit; later turns of a conversation take the next visits."""
        turns = self.samples[index].turns
        turn = turns[visit % len(turns)]
        return (Pair(turn.question, turn.answer),)


def open_clips(path: str, *, num_frames: int, seed: int) -> ClipSource:
    """The source over an authors' JSON list.

    Raises:
        ConfigError: the file is not such a list, or is empty.
    """
    samples = tuple(read_samples(path))
    if not samples:
        raise ConfigError(f"{path} holds no samples; at least 1 is needed")
    return ClipSource(samples, path, num_frames, seed)
