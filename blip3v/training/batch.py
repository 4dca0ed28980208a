"""Turns texts and pixels into the tensors of one training step."""

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

_MAX_CACHED_ROWS = 2**16


@dataclass(frozen=True)
class Row:
    """Token ids of one question and its answer."""

    ids: list[int]
    num_prompt_tokens: int  # ids before the answer
    image_position: int


@dataclass(frozen=True)
class Batch:
    """The tensors of one training step, with either ``pixels_CTCHW`` or ``features_CTPD``, never both."""

    ids_CL: Tensor
    labels_CL: Tensor
    question_CL: Tensor  # 0 up to and including <image>, then the number of the question, from 1
    image_position_C: Tensor
    pixels_CTCHW: Tensor | None = None
    features_CTPD: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on ``device``."""
        tensors: dict[str, Any] = {name: None if x is None else x.to(device) for name, x in vars(self).items()}
        return Batch(**tensors)


@dataclass(frozen=True)
class ChatFormat:
    """Tokenizer, chat template and generation settings, which turn questions into prompts."""

    tokenizer: Tokenizer
    template: str
    generation: GenerationConfig
    _rows: dict[Pair, Row] = field(default_factory=dict, repr=False, compare=False)

    def row(self, pair: Pair) -> Row:
        """Ids of the prompt, the answer and its end token. The first rows are cached: a film's questions recur."""
        if pair in self._rows:
            return self._rows[pair]
        row = self._make_row(pair)
        if len(self._rows) < _MAX_CACHED_ROWS:
            self._rows[pair] = row
        return row

    def _make_row(self, pair: Pair) -> Row:
        prompt = build_prompt(self.tokenizer, self.template, self.generation, [Message("user", pair.question)])
        answer = [*self.tokenizer.encode_after(ASSISTANT, pair.answer), self.tokenizer.end_id]
        return Row([*prompt.ids, *answer], len(prompt.ids), prompt.image_position)


def visits_of_step(step: int, num_clips: int, batch_size: int, seed: int) -> list[tuple[int, int]]:
    """The (clip, visit) pairs of one step. Each visit goes through all clips once, in a random order of its own."""
    positions = range(step * batch_size, (step + 1) * batch_size)
    orders = {
        visit: np.random.default_rng(np.random.SeedSequence((seed, visit))).permutation(num_clips)
        for visit in {position // num_clips for position in positions}
    }
    visits = [divmod(position, num_clips) for position in positions]
    return [(int(orders[visit][at]), visit) for visit, at in visits]


def make_batch(
    rows_of_clip: Sequence[Sequence[Row]],
    *,
    pad_id: int,
    pixels: Sequence[np.ndarray] | None = None,
    features: np.ndarray | None = None,
) -> Batch:
    """Packs each clip into one row: the prefix that its prompts share up to ``<image>``, then question after question.

    Rows are padded on the right; only answers have labels.

    Args:
        rows_of_clip: the questions of each clip, C lists.
        pad_id: id of the padding.
        pixels: C arrays float32 (T, 3, side, side) in [-1, 1].
        features: float16 (C, T, P, D), patch tokens from a frozen vision encoder.
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
        assert row.ids[: len(shared)] == shared, "the chat template must write the question after <image>"
        ids += row.ids[len(shared) :]
        labels += [IGNORE_INDEX] * (row.num_prompt_tokens - len(shared)) + row.ids[row.num_prompt_tokens :]
        question += [number] * (len(row.ids) - len(shared))
    return np.array(ids), np.array(labels), np.array(question)
