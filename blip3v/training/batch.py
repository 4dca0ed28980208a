"""Texts and pictures become the tensors of one step."""

# Shapes: C clips, R rows (one question each), T frames, P patches, L tokens, S side of the picture.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip3v.data.samples import Pair
from blip3v.model import IGNORE
from blip3v.text import GenerationConfig, Message, Tokenizer, build_prompt

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

    ids_RL: Tensor
    labels_RL: Tensor
    image_position_R: Tensor
    clip_R: Tensor  # which clip a row asks about
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
        answer = [*self.tokenizer.encode(pair.answer), self.tokenizer.end_id]
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
    """Pads the rows on the right; only answer positions carry a label.

    Args:
        rows_of_clip: the rows of each clip, C lists.
        pad_id: id that fills the right side.
        pixels: C arrays float32 (T, 3, S, S) in [-1, 1].
        features: float16 (C, T, P, D), patch tokens of a frozen vision encoder.
    """
    rows = [row for rows in rows_of_clip for row in rows]
    length = max(len(row.ids) for row in rows)
    ids = torch.full((len(rows), length), pad_id)
    labels = torch.full((len(rows), length), IGNORE)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
        labels[at, row.num_prompt : len(row.ids)] = ids[at, row.num_prompt : len(row.ids)]
    return Batch(
        ids_RL=ids,
        labels_RL=labels,
        image_position_R=torch.tensor([row.image_position for row in rows]),
        clip_R=torch.tensor([clip for clip, rows in enumerate(rows_of_clip) for _ in rows]),
        pixels_CTCHW=None if pixels is None else torch.from_numpy(np.stack(pixels)),
        features_CTPD=None if features is None else torch.from_numpy(features).float(),
    )
