"""Batches of clips with conversations. A clip that cannot be read is replaced by the next one of its visit's order."""

# Shapes: C clips, T frames, P patches, D width, S side of the model's image.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from blip3v.errors import ConfigError, VideoError
from blip3v.training.batch import Batch, make_batch
from blip3v.training.broken import UNREADABLE, BrokenClip, Notes
from blip3v.training.chat_rows import ChatFormat, Row
from blip3v.training.clip_pixels import ClipPixels
from blip3v.training.features import Features
from blip3v.training.order import candidates, positions_of_step

__all__ = ["Batches"]

# So many broken clips one after the other are no accident, and looking for a readable one takes long.
_MOST_TRIES = 32


@dataclass(frozen=True)
class _Loaded:
    """One clip of a batch."""

    rows: list[Row]
    values: npt.NDArray[Any]  # pictures uint8 (T, S, S, 3), or features float16 (T, P, D)


@dataclass(frozen=True)
class Batches:
    """The batch of every step.

    Attributes:
        pixels: of the clips.
        chat: how a conversation becomes ids.
        batch_size: clips in a step, over all devices.
        seed: of the order of the clips.
        features: of every clip, from the frozen vision encoder; None: pixels are computed at each visit.
        max_tokens: bound on a conversation; None: there is none.
    """

    pixels: ClipPixels
    chat: ChatFormat
    batch_size: int
    seed: int
    features: Features | None = None
    max_tokens: int | None = None

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> Batch:
        """The share of step ``step`` for process ``rank`` of ``world``.

        Raises:
            ConfigError: none of the clips that could replace a broken one can be read.
        """
        broken: list[BrokenClip] = []
        positions = positions_of_step(step, self.batch_size)[rank::world]
        loaded = [self._load_one(position, step, broken) for position in positions]
        rows, values = [clip.rows for clip in loaded], [clip.values for clip in loaded]
        notes = Notes(tuple(broken), sum(row.is_cut for clip in rows for row in clip))
        pad_id = self.chat.tokenizer.pad_id
        if self.features is not None:
            return make_batch(rows, pad_id=pad_id, features=np.stack(values), notes=notes)
        return make_batch(rows, pad_id=pad_id, pictures=self.pixels.batched(values), notes=notes)

    def _load_one(self, position: int, step: int, broken: list[BrokenClip]) -> _Loaded:
        """The clip of a position or the first that can replace it; those that cannot be read go to ``broken``."""
        source, error = self.pixels.source, ""
        for tried, (clip, visit) in enumerate(candidates(position, len(source), self.seed)):
            if tried == _MOST_TRIES:
                break
            try:
                return self._load(clip, visit)
            except UNREADABLE as problem:
                error = str(problem)
                broken.append(BrokenClip(step + 1, clip, source.name(clip), error))
        raise ConfigError(
            f"{min(_MOST_TRIES, len(source))} clips one after the other cannot be read, of which the last is "
            f"{broken[-1].name} ({error}); check where the data lie"
        )

    def _load(self, clip: int, visit: int) -> _Loaded:
        conversations = self.pixels.source.conversations(clip, visit)
        rows = [self.chat.row(conversation, self.max_tokens) for conversation in conversations]
        if self.features is None:
            return _Loaded(rows, self.pixels.read(clip, visit))
        if clip in self.features.broken:
            raise VideoError(self.features.broken[clip])
        return _Loaded(rows, self.features[clip])
