"""The stage that trains vision encoder and resampler from nothing: tokens have to say what a patch shows and where.

Every patch token answers for its own patch, and every resampler token for one patch too, so that the latents learn to
look somewhere: left to captions alone they take the mean of the frame for a long time, which tells no place. Only
models without pretrained weights need this stage; the heads are thrown away with it.
"""

# Shapes: C clips (one frame each), P patches, L latents, N tokens (P or L), A attributes, D width, K classes.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3v.data.film import make_film
from blip3v.data.patches import num_classes, patch_labels
from blip3v.data.samples import FilmSource
from blip3v.model import Blip3Video
from blip3v.training.batch import visits_of_step
from blip3v.training.features import clip_pixels
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["PatchBatch", "PatchBatches", "PatchObjective"]


@dataclass(frozen=True)
class PatchBatch:
    """Frames and what their patches show."""

    pixels_CTCHW: Tensor
    labels_CPA: Tensor

    def to(self, device: torch.device) -> PatchBatch:
        """The same batch on ``device``."""
        return PatchBatch(self.pixels_CTCHW.to(device), self.labels_CPA.to(device))


@dataclass(frozen=True)
class PatchBatches:
    """The batch of every step: random frames of synthetic films."""

    source: FilmSource
    preprocessor: PreprocessorConfig
    batch_size: int
    seed: int
    grid: int  # patches along each side

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> PatchBatch:
        """The part of step ``step`` that process ``rank`` of ``world`` sees."""
        visits = visits_of_step(step, len(self.source), self.batch_size, self.seed)[rank::world]
        pixels = [clip_pixels(self.source, index, visit, self.preprocessor) for index, visit in visits]
        labels = [
            patch_labels(make_film(index, "train"), self.source.moment(index, visit), self.grid)
            for index, visit in visits
        ]
        return PatchBatch(torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(labels)))


class PatchObjective(nn.Module):
    """The model with linear heads on its patch tokens and its resampler tokens, and the loss as ``forward``."""

    def __init__(self, model: Blip3Video) -> None:
        super().__init__()
        self.model = model
        vision = model.config.vision
        self.classes = num_classes(vision.image_size // vision.patch_size)
        self.patch_head = nn.Linear(vision.hidden_size, sum(self.classes))
        self.latent_head = nn.Linear(vision.hidden_size, sum(self.classes))

    def forward(self, batch: PatchBatch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over tokens and attributes in nats, and the number of tokens."""
        features_CTPD = self.model.features(batch.pixels_CTCHW)
        latents_CLD = self.model.vision_tokenizer.resample(features_CTPD)[:, 0]
        num_patches, num_latents = features_CTPD.shape[2], latents_CLD.shape[1]
        patch_of_latent = torch.arange(num_latents, device=latents_CLD.device) * num_patches // num_latents
        labels_CLA = batch.labels_CPA[:, patch_of_latent]
        loss = self._loss(self.patch_head(features_CTPD[:, 0]), batch.labels_CPA)
        loss = loss + self._loss(self.latent_head(latents_CLD), labels_CLA)
        num_tokens = batch.labels_CPA[..., 0].numel() + labels_CLA[..., 0].numel()
        return loss, torch.tensor(num_tokens, device=loss.device)

    def _loss(self, logits_CNK: Tensor, labels_CNA: Tensor) -> Tensor:
        logits = torch.split(logits_CNK.float().flatten(0, 1), list(self.classes), dim=-1)
        labels_XA = labels_CNA.flatten(0, 1)
        losses = [F.cross_entropy(x, labels_XA[:, a], reduction="sum") for a, x in enumerate(logits)]
        return torch.stack(losses).sum()
