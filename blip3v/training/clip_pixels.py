"""Pixels of a source's clips, in whichever process asks for them."""

# Shapes: T frames, S side of the model's image.

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from blip3v.data.samples import Source
from blip3v.training.broken import UNREADABLE
from blip3v.video import VideoLimits
from blip3v.video.pixel_reader import PixelReader
from blip3v.video.preprocess import PreprocessorConfig, preprocess

__all__ = ["ClipPixels", "ReadableClips"]


@dataclass(frozen=True)
class ClipPixels:
    """Pixels of a source's clips. Files are decoded by a process that lives as long as this does."""

    source: Source
    preprocessor: PreprocessorConfig
    reader: PixelReader = field(default_factory=lambda: PixelReader(VideoLimits()), compare=False)

    def read(self, clip: int, visit: int) -> npt.NDArray[np.float32]:
        """Pixels of one clip, float32 (T, 3, S, S) in [-1, 1].

        Raises:
            VideoError: one of its kinds: the file cannot be read.
            UsageError: no frame lies in the clip's range.
        """
        request = self.source.request(clip, visit)
        if request is None:
            return preprocess(self.source.frames(clip, visit), self.preprocessor)
        return self.reader.pixels(request, self.preprocessor)


@dataclass(frozen=True)
class ReadableClips:
    """Pixels of every clip at its first visit, or why it cannot be read: what features are computed from."""

    pixels: ClipPixels

    def __getitem__(self, clip: int) -> npt.NDArray[np.float32] | str:
        """Of one clip."""
        try:
            return self.pixels.read(clip, 0)
        except UNREADABLE as error:
            return str(error)
