"""The stage that trains a vision encoder from nothing: each patch token has to say what the patch shows and where.

Only models without a pretrained vision encoder need it; the head is thrown away with the stage.
"""

# Shapes: C clips (one frame each), P patches, A attributes, D width.

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
    """The model with a linear head on its patch tokens, and the loss as ``forward``."""

    def __init__(self, model: Blip3Video) -> None:
        super().__init__()
        self.model = model
        vision = model.config.vision
        self.classes = num_classes(vision.image_size // vision.patch_size)
        self.head = nn.Linear(vision.hidden_size, sum(self.classes))

    def forward(self, batch: PatchBatch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over patches and attributes in nats, and the number of patches."""
        features_CPD = self.model.features(batch.pixels_CTCHW)[:, 0]
        logits = self.head(features_CPD).split(self.classes, dim=-1)
        losses = [
            F.cross_entropy(logits_CPK.flatten(0, 1).float(), batch.labels_CPA[..., a].flatten(), reduction="sum")
            for a, logits_CPK in enumerate(logits)
        ]
        return torch.stack(losses).sum(), torch.tensor(batch.labels_CPA[..., 0].numel(), device=features_CPD.device)
