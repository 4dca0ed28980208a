"""Texts and pictures become the tensors of one step."""

# Shapes: C clips, T frames, P patches, L tokens.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from blip3v.data.samples import Pair
from blip3v.model import IGNORE_INDEX
from blip3v.text import GenerationConfig, Message, Tokenizer, build_prompt
from blip3v.text.special import ASSISTANT

__all__ = ["Batch", "ChatFormat", "Row", "make_batch", "visits_of_step"]

_KEPT_ROWS = 2**16


@dataclass(frozen=True)
class Row:
    """One question with its answer, as ids."""

    ids: list[int]
    num_prompt: int  # ids before the answer
    image_position: int


@dataclass(frozen=True)
class Batch:
    """What one step sees. ``pixels_CTCHW`` or ``features_CTPD``, never both."""

    ids_CL: Tensor
    labels_CL: Tensor
    question_CL: Tensor  # 0 up to <image>, then the number of the question
    image_position_C: Tensor
    pixels_CTCHW: Tensor | None = None
    features_CTPD: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        tensors: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in vars(self).items()}
        return Batch(**tensors)


@dataclass(frozen=True)
class ChatFormat:
    """How a model is spoken to."""

    tokenizer: Tokenizer
    template: str
    generation: GenerationConfig
    _rows: dict[Pair, Row] = field(default_factory=dict, repr=False, compare=False)

    def row(self, pair: Pair) -> Row:
        """Ids of the prompt, the answer and its end token. The first rows are kept: a film's questions come again."""
        if pair in self._rows:
            return self._rows[pair]
        row = self._make_row(pair)
        if len(self._rows) < _KEPT_ROWS:
            self._rows[pair] = row
        return row

    def _make_row(self, pair: Pair) -> Row:
        prompt = build_prompt(self.tokenizer, self.template, self.generation, [Message("user", pair.question)])
        answer = [*self.tokenizer.encode_behind(ASSISTANT, pair.answer), self.tokenizer.end_id]
        return Row([*prompt.ids, *answer], len(prompt.ids), prompt.image_position)


def visits_of_step(step: int, num_clips: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """(clip, visit) of a step: every clip once in random order, then every clip again in another."""
    places = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        visit: np.random.default_rng(np.random.SeedSequence((seed, visit))).permutation(num_clips)
        for visit in {place // num_clips for place in places}
    }
    return [(int(orders[place // num_clips][place % num_clips]), place // num_clips) for place in places]


def make_batch(
    rows_of_clip: Sequence[Sequence[Row]],
    *,
    pad_id: int,
    pixels: Sequence[np.ndarray] | None = None,
    features: np.ndarray | None = None,
) -> Batch:
    """One row for each clip: what its prompts share up to ``<image>``, then its questions one after the other.

    Rows are padded on the right; only answers carry a label.

    Args:
        rows_of_clip: the questions of each clip, C lists.
        pad_id: id that fills the right side.
        pixels: C arrays float32 (T, 3, side, side) in [-1, 1].
        features: float16 (C, T, P, D), patch tokens of a frozen vision encoder.
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
    )


def _pack(rows: Sequence[Row]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Ids, labels and question numbers of one clip."""
    shared = rows[0].ids[: rows[0].image_position + 1]
    ids, labels, question = list(shared), [IGNORE_INDEX] * len(shared), [0] * len(shared)
    for number, row in enumerate(rows, start=1):
        assert row.ids[: len(shared)] == shared, "the chat template writes a question behind <image>"
        ids += row.ids[len(shared) :]
        labels += [IGNORE_INDEX] * (row.num_prompt - len(shared)) + row.ids[row.num_prompt :]
        question += [number] * (len(row.ids) - len(shared))
    return np.array(ids), np.array(labels), np.array(question)
