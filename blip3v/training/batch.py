"""Turns texts and pixels into the tensors of one training step."""

# Shapes: C clips, T frames, P patches, D width, L tokens, K channels of a picture (3), V values of a channel (256).
# In ``pixels_CTCHW``, whose layout is the model's, the channels are the second C.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blip3v.model import IGNORE_INDEX
from blip3v.training.broken import NOTHING, Notes
from blip3v.training.chat_rows import Row
from blip3v.training.tensors import Tensors

__all__ = ["Batch", "Pictures", "make_batch"]


@dataclass(frozen=True)
class Pictures(Tensors):
    """Pixels as the loader makes them: the levels of resized pictures, a quarter of the bytes, and their values.

    Attributes:
        levels_CTHWK: uint8 (C, T, side, side, 3), of ``blip3v.video.preprocess.resize``.
        values_KV: (3, 256), of ``level_values``: what each level becomes in each channel, in the model's dtype.
    """

    levels_CTHWK: Tensor
    values_KV: Tensor

    def pixels(self) -> Tensor:
        """What ``preprocess`` returns for each clip, bit for bit: (C, T, 3, side, side), on the levels' device.

        Looked up, not computed: a device may divide in another way than NumPy.
        """
        num_clips, *shape, num_channels = self.levels_CTHWK.shape
        pixels_CTKHW = self.values_KV.new_empty((num_clips, shape[0], num_channels, *shape[1:]))
        for pixels_TKHW, levels_THWK in zip(pixels_CTKHW, self.levels_CTHWK, strict=True):
            for channel, values_V in enumerate(self.values_KV):
                levels = levels_THWK[..., channel].flatten().int()  # as an index: uint8 would be a mask
                pixels_TKHW[:, channel] = values_V.index_select(0, levels).view(shape)
        return pixels_CTKHW


@dataclass(frozen=True)
class Batch(Tensors):
    """The tensors of one training step, with either ``pictures`` or ``features_CTPD``, never both.

    ``question_CL`` numbers the conversations of a row: 0 up to and including ``<image>``, then from 1.
    """

    ids_CL: Tensor
    labels_CL: Tensor
    question_CL: Tensor
    image_position_C: Tensor
    pictures: Pictures | None = None
    features_CTPD: Tensor | None = None
    notes: Notes = NOTHING


def make_batch(
    rows_of_clip: Sequence[Sequence[Row]],
    *,
    pad_id: int,
    pictures: Pictures | None = None,
    features: np.ndarray | None = None,
    notes: Notes = NOTHING,
) -> Batch:
    """Packs each clip into one row: the prefix that its prompts share up to ``<image>``, then one conversation after
    the other, none of which sees the others.

    Rows are padded on the right; only answers have labels.

    Args:
        rows_of_clip: the conversations of each clip, C lists.
        pad_id: id of the padding.
        pictures: of the C clips.
        features: float16 (C, T, P, D), patch tokens from a frozen vision encoder.
        notes: of the clips, for the log.
    """
    packed = [_pack(rows) for rows in rows_of_clip]
    shape = len(packed), max(ids.size for ids, _, _ in packed)
    ids_CL, labels_CL, question_CL = np.full(shape, pad_id), np.full(shape, IGNORE_INDEX), np.zeros(shape, np.int64)
    for at, (ids, labels, question) in enumerate(packed):
        ids_CL[at, : ids.size], labels_CL[at, : ids.size] = ids, labels
        question_CL[at] = np.pad(question, (0, shape[1] - ids.size), mode="edge")
    return Batch(
        ids_CL=torch.from_numpy(ids_CL),
        labels_CL=torch.from_numpy(labels_CL),
        question_CL=torch.from_numpy(question_CL),
        image_position_C=torch.tensor([rows[0].image_position for rows in rows_of_clip]),
        pictures=pictures,
        features_CTPD=None if features is None else torch.from_numpy(features).float(),
        notes=notes,
    )


def _pack(rows: Sequence[Row]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids, labels and conversation numbers of one clip."""
    shared = rows[0].ids[: rows[0].image_position + 1]
    ids, labels, question = list(shared), [IGNORE_INDEX] * len(shared), [0] * len(shared)
    for number, row in enumerate(rows, start=1):
        assert row.ids[: len(shared)] == shared, "the chat template must write the question after <image>"
        ids += row.ids[len(shared) :]
        labels += row.labels[len(shared) :]
        question += [number] * (len(row.ids) - len(shared))
    return np.array(ids), np.array(labels), np.array(question)
