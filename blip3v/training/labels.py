"""Heads for the stages that train on labels: a token must predict what it stands for. They are discarded afterwards."""

# Shapes: C clips, N tokens, A attributes, K classes, D width, X tokens of all clips.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from blip3v.data.labels import IGNORE_INDEX, Labels
from blip3v.training.tensors import Tensors

__all__ = ["LabelBatch", "LabelHead", "stack_labels"]

# A place should be predicted to about one pixel of 64 (in halves of the frame); below that the loss is quadratic.
_PLACE_BETA = 0.05
_PLACE_WEIGHT = 4.0


@dataclass(frozen=True)
class LabelBatch(Tensors):
    """Labels of C clips with N tokens each."""

    words_CNA: Tensor
    place_CN2: Tensor

    def select(self, index_N: Tensor) -> LabelBatch:
        """The labels at the indices ``index_N``, one for each of N tokens."""
        return LabelBatch(self.words_CNA[:, index_N], self.place_CN2[:, index_N])


def stack_labels(labels: Sequence[Labels]) -> LabelBatch:
    """Stacks the labels of clips, one row per clip."""
    return LabelBatch(
        torch.from_numpy(np.stack([x.words_NA for x in labels])),
        torch.from_numpy(np.stack([x.place_N2 for x in labels])),
    )


class LabelHead(nn.Module):
    """A linear head with a softmax per attribute and two outputs for the place."""

    def __init__(self, dim: int, num_classes: Sequence[int]) -> None:
        super().__init__()
        self.num_classes = list(num_classes)
        self.norm = nn.LayerNorm(dim)
        self.read = nn.Linear(dim, sum(num_classes) + 2)

    def loss(self, tokens_CND: Tensor, labels: LabelBatch) -> Tensor:
        """Sum over tokens: cross-entropy of the attributes in nats, plus the weighted error of the place if any.

        Args:
            tokens_CND: (C, N, D).
            labels: with the same C and N.
        """
        *logits_XK, place_X2 = self.read(self.norm(tokens_CND)).float().flatten(0, 1).split([*self.num_classes, 2], -1)
        words_XA, true_X2 = labels.words_CNA.flatten(0, 1), labels.place_CN2.flatten(0, 1)
        seen_X = ~true_X2[:, 0].isnan()
        place = F.smooth_l1_loss(place_X2[seen_X], true_X2[seen_X], beta=_PLACE_BETA, reduction="sum")
        words = [
            F.cross_entropy(x, words_XA[:, a], ignore_index=IGNORE_INDEX, reduction="sum")
            for a, x in enumerate(logits_XK)
        ]
        return torch.stack(words).sum() + _PLACE_WEIGHT * place
