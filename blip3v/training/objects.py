"""The stage that trains a temporal encoder from scratch and teaches the language model to follow what it sees.

Each video token is responsible for one object of one frame, frame by frame, and must predict what the object is and
where. The language model's state at the same token must predict what the object has done so far. With captions and
questions alone, the softmax over the tokens of all frames merges both objects for a long time: which of them moved is
lost, and no answer teaches the language model to compare frames. Only models without pretrained weights need this
stage.
"""

# Shapes: C clips, T frames, P patches, M video tokens, N objects in all frames.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blip3v.data.labels import NUM_WORDS, motion_labels, num_motion_words, object_labels
from blip3v.data.samples import FilmSource
from blip3v.model import Blip3Video
from blip3v.training.broken import NOTHING, Notes
from blip3v.training.features import Features
from blip3v.training.labels import LabelBatch, LabelHead, stack_labels
from blip3v.training.loop import StageObjective
from blip3v.training.order import visits_of_step
from blip3v.training.tensors import Tensors

__all__ = ["ObjectBatch", "ObjectBatches", "ObjectObjective"]


@dataclass(frozen=True)
class ObjectBatch(Tensors):
    """Patch tokens of the clips and labels of the objects in their frames."""

    features_CTPD: Tensor
    objects: LabelBatch
    motions: LabelBatch
    notes: Notes = NOTHING


@dataclass(frozen=True)
class ObjectBatches:
    """The batch of every step.

    Attributes:
        source: the films.
        features: of every film, from the frozen vision encoder.
        batch_size: clips in a step, over all devices.
        seed: of the order of the clips.
        frames: which of the T frames the temporal encoder reads.
    """

    source: FilmSource
    features: Features
    batch_size: int
    seed: int
    frames: slice

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> ObjectBatch:
        """The share of step ``step`` for process ``rank`` of ``world``."""
        visits = visits_of_step(step, len(self.source), self.batch_size, self.seed)[rank::world]
        clips = [clip for clip, _ in visits]
        films = [(self.source.film(clip), self.source.times(clip)[self.frames]) for clip in clips]
        return ObjectBatch(
            torch.from_numpy(np.stack([self.features[clip] for clip in clips])).float(),
            stack_labels([object_labels(film, times) for film, times in films]),
            stack_labels([motion_labels(film, times) for film, times in films]),
        )


class ObjectObjective(StageObjective):
    """Heads on the video tokens and on the language model's states at these tokens."""

    unused = ("model.lang_model.model.embed_tokens.", "model.lang_model.lm_head.")

    def __init__(self, model: Blip3Video) -> None:
        super().__init__(model)
        config = model.config
        self.object_head = LabelHead(config.text.hidden_size, NUM_WORDS)
        self.motion_head = LabelHead(config.text.hidden_size, num_motion_words(config.num_frames))

    def count(self, batch: ObjectBatch) -> Tensor:
        """Number of video tokens."""
        return torch.tensor(batch.features_CTPD.shape[0] * self.model.config.num_video_tokens)

    def forward(self, batch: ObjectBatch) -> Tensor:
        """Summed loss over video tokens."""
        video_CMD = self.model.vision_tokenizer(batch.features_CTPD)
        states_CMD = self.model.lang_model.hidden(video_CMD)
        num_video_tokens, num_objects = video_CMD.shape[1], batch.objects.words_CNA.shape[1]
        object_of_token = torch.arange(num_video_tokens, device=video_CMD.device) * num_objects // num_video_tokens
        loss = self.object_head.loss(video_CMD, batch.objects.select(object_of_token))
        return loss + self.motion_head.loss(states_CMD, batch.motions.select(object_of_token))
