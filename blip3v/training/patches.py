"""The stage that trains vision encoder and resampler from scratch: tokens must predict what a patch shows and where.

Every patch token is responsible for its own patch, and every resampler token for one patch too, so that the latents
learn to attend to a place: with captions alone they average the frame for a long time, and the mean has no place. Only
models without pretrained weights need this stage.
"""

# Shapes: C clips (one frame each), P patches, L latents, D width.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from blip3v.data.labels import NUM_WORDS, patch_labels
from blip3v.data.samples import FilmSource
from blip3v.errors import ConfigError
from blip3v.model import Blip3Video
from blip3v.training.broken import NOTHING, Notes
from blip3v.training.labels import LabelBatch, LabelHead, stack_labels
from blip3v.training.loop import StageObjective
from blip3v.training.order import visits_of_step
from blip3v.training.tensors import Tensors
from blip3v.video.preprocess import PreprocessorConfig, preprocess

__all__ = ["PatchBatch", "PatchBatches", "PatchObjective"]


@dataclass(frozen=True)
class PatchBatch(Tensors):
    """Frames and the labels of their patches."""

    pixels_CTCHW: Tensor
    labels: LabelBatch
    notes: Notes = NOTHING


@dataclass(frozen=True)
class PatchBatches:
    """The batch of every step: random frames of synthetic films."""

    source: FilmSource
    preprocessor: PreprocessorConfig
    batch_size: int
    seed: int
    grid: int  # patches along each side

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> PatchBatch:
        """The share of step ``step`` for process ``rank`` of ``world``."""
        visits = visits_of_step(step, len(self.source), self.batch_size, self.seed)[rank::world]
        pixels = [preprocess(self.source.frames(index, visit), self.preprocessor) for index, visit in visits]
        labels = [
            patch_labels(self.source.film(index), self.source.moment(index, visit), self.grid)
            for index, visit in visits
        ]
        return PatchBatch(torch.from_numpy(np.stack(pixels)), stack_labels(labels))


class PatchObjective(StageObjective):
    """Heads on the patch tokens and on the resampler tokens."""

    unused = (
        "model.vision_tokenizer.temporal_encoder.",
        "model.vision_tokenizer.norm.",
        "model.vision_tokenizer.projection.",
    )

    def __init__(self, model: Blip3Video) -> None:
        super().__init__(model)
        if not model.vision_tokenizer.resamples:
            raise ConfigError(
                f"stage patches trains the resampler, but a model with {model.config.temporal.encoder} has none; train "
                "it with another encoder, such as single-frame, and start from that model"
            )
        vision = model.config.vision
        grid = vision.image_size // vision.patch_size
        self.patch_head = LabelHead(vision.hidden_size, (*NUM_WORDS, grid, grid))
        self.latent_head = LabelHead(vision.hidden_size, (*NUM_WORDS, grid, grid))

    def count(self, batch: PatchBatch) -> Tensor:
        """Number of patch tokens and resampler tokens."""
        config = self.model.config
        return torch.tensor(batch.pixels_CTCHW.shape[0] * (config.vision.num_patches + config.resampler.num_latents))

    def forward(self, batch: PatchBatch) -> Tensor:
        """Summed loss over tokens."""
        features_CTPD = self.model.features(batch.pixels_CTCHW)
        latents_CLD = self.model.vision_tokenizer.resample(features_CTPD)[:, 0]
        num_patches, num_latents = features_CTPD.shape[2], latents_CLD.shape[1]
        patch_of_latent = torch.arange(num_latents, device=latents_CLD.device) * num_patches // num_latents
        loss = self.patch_head.loss(features_CTPD[:, 0], batch.labels)
        return loss + self.latent_head.loss(latents_CLD, batch.labels.select(patch_of_latent))
