"""Pictures of a source's clips, in whichever process asks for them, and the tensors that they become."""

# Shapes: C clips, T frames, S side of the model's image, K channels.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from blip3v.data.samples import Source
from blip3v.training.batch import Pictures
from blip3v.training.broken import UNREADABLE
from blip3v.video import VideoLimits
from blip3v.video.pixel_reader import PixelReader
from blip3v.video.preprocess import PreprocessorConfig, level_values, resize

__all__ = ["ClipPixels", "ReadableClips"]


@dataclass(frozen=True)
class ClipPixels:
    """Pixels of a source's clips. Files are decoded by a process that lives as long as this does.

    A clip is read as the levels of its resized pictures; they become pixels where the model runs (``batched``).
    """

    source: Source
    preprocessor: PreprocessorConfig
    reader: PixelReader = field(default_factory=lambda: PixelReader(VideoLimits()), compare=False)

    def read(self, clip: int, visit: int) -> npt.NDArray[np.uint8]:
        """Resized pictures of one clip, uint8 (T, S, S, 3).

        Raises:
            VideoError: one of its kinds: the file cannot be read.
            UsageError: no frame lies in the clip's range.
        """
        request = self.source.request(clip, visit)
        if request is None:
            return resize(self.source.frames(clip, visit), self.preprocessor)
        return self.reader.pictures(request, self.preprocessor)

    def batched(self, levels_TSSK: Sequence[npt.NDArray[np.uint8]]) -> Pictures:
        """The tensors of clips that were read."""
        values_KV = torch.from_numpy(level_values(self.preprocessor))
        return Pictures(torch.from_numpy(np.stack(levels_TSSK)), values_KV)


@dataclass(frozen=True)
class ReadableClips:
    """Pictures of every clip at its first visit, or why it cannot be read: what features are computed from."""

    pixels: ClipPixels

    def __getitem__(self, clip: int) -> npt.NDArray[np.uint8] | str:
        """Of one clip."""
        try:
            return self.pixels.read(clip, 0)
        except UNREADABLE as error:
            return str(error)
