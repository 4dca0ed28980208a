"""Packs several questions about one film into one row, so that their shared prefix is computed once.

    one row    [ prefix, video tokens ][ question 1, answer 1 ][ question 2, answer 2 ] ...
    equals     [ prefix, video tokens ][ question 1, answer 1 ]
               [ prefix, video tokens ][ question 2, answer 2 ]

A question sees the prefix and itself, and its positions continue from the end of the prefix.
"""

# Shapes: B rows, S positions.

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["positions_and_mask"]


def positions_and_mask(question_BS: Tensor, *, window: int | None) -> tuple[Tensor, Tensor]:
    """Returns each position's index in its own conversation, and which positions it sees.

    Args:
        question_BS: int64, 0 for the shared prefix, then 1, 2, ... in order; equal numbers are contiguous.
        window: how many positions attention reaches back, counting the position itself; None: to the start.

    Returns:
        Positions (B, S) int64, and a mask (B, 1, S, S) that is true where the row's position sees the column's.
    """
    at_S = torch.arange(question_BS.shape[1], device=question_BS.device)
    shared_BS = question_BS == 0
    begins_BS = torch.ones_like(shared_BS)
    begins_BS[:, 1:] = question_BS[:, 1:] != question_BS[:, :-1]
    begin_BS = torch.where(begins_BS, at_S, 0).cummax(dim=1).values
    position_BS = torch.where(shared_BS, at_S, shared_BS.sum(dim=1, keepdim=True) + at_S - begin_BS)
    sees_BSS = (at_S[:, None] >= at_S) & (shared_BS[:, None] | (question_BS[:, :, None] == question_BS[:, None]))
    if window is not None:
        sees_BSS = sees_BSS & (position_BS[:, :, None] - position_BS[:, None] < window)
    return position_BS, sees_BSS[:, None]
