"""Turns texts and pixels into the tensors of one training step."""

# Shapes: C clips, T frames, P patches, L tokens.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blip3v.model import IGNORE_INDEX
from blip3v.training.broken import NOTHING, Notes
from blip3v.training.chat_rows import Row

__all__ = ["Batch", "make_batch"]


@dataclass(frozen=True)
class Batch:
    """The tensors of one training step, with either ``pixels_CTCHW`` or ``features_CTPD``, never both.

    ``question_CL`` numbers the conversations of a row: 0 up to and including ``<image>``, then from 1.
    """

    ids_CL: Tensor
    labels_CL: Tensor
    question_CL: Tensor
    image_position_C: Tensor
    pixels_CTCHW: Tensor | None = None
    features_CTPD: Tensor | None = None
    notes: Notes = NOTHING

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``; a copy from pinned memory is not waited for."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """The same batch in pinned memory."""
        return self._with(Tensor.pin_memory)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {name: change(x) for name, x in vars(self).items() if isinstance(x, Tensor)}
        return dataclasses.replace(self, **tensors)


def make_batch(
    rows_of_clip: Sequence[Sequence[Row]],
    *,
    pad_id: int,
    pixels: Sequence[np.ndarray] | None = None,
    features: np.ndarray | None = None,
    notes: Notes = NOTHING,
) -> Batch:
    """Packs each clip into one row: the prefix that its prompts share up to ``<image>``, then one conversation after
    the other, none of which sees the others.

    Rows are padded on the right; only answers have labels.

    Args:
        rows_of_clip: the conversations of each clip, C lists.
        pad_id: id of the padding.
        pixels: C arrays float32 (T, 3, side, side) in [-1, 1].
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
        pixels_CTCHW=None if pixels is None else torch.from_numpy(np.stack(pixels)),
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
