"""A sample of a layer's inputs, taken while they stream past: memory depends only on the rows that are kept."""

# Shapes: n rows of one call, N kept rows, K inputs.

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.calibration.record import SamplingSettings
from blip3v.calibration.statistics import LayerStatistics
from blip3v.errors import CalibrationError

__all__ = ["RowSampler"]


class RowSampler:
    """Keeps the rows with the largest absolute values, and a uniform sample of all others.

    Every row draws a ticket, a random number; of the rows that are not among the largest, those with the largest
    tickets are kept. Which rows these are depends on the seed, the layer's name and the rows, not on how they are split
    into calls.

    Args:
        name: of the layer.
        num_inputs: K.
        settings: how many rows to keep.
    """

    def __init__(self, name: str, num_inputs: int, settings: SamplingSettings) -> None:
        self.name = name
        key = hashlib.sha256(name.encode()).digest()[:16]
        self._rng = np.random.default_rng([settings.seed, int.from_bytes(key, "big")])
        self._num_extreme, self._num_random = settings.num_extreme, settings.num_rows - settings.num_extreme
        self._absmax_K = torch.zeros(num_inputs)
        self._num_seen = 0
        self._rows_NK = torch.empty(settings.num_rows, num_inputs)
        # Of each kept row: its largest absolute value, its ticket, and when it came.
        self._largest_N, self._ticket_N = np.empty(0), np.empty(0)
        self._came_N, self._slot_N = np.empty(0, np.int64), np.empty(0, np.int64)  # the slot: its place in _rows_NK
        self._least_largest, self._least_ticket = -np.inf, -np.inf  # what a new row must exceed to be kept

    def add(self, inputs: Tensor) -> None:
        """Takes the inputs of one call, (..., K).

        Raises:
            CalibrationError: NaN or infinity.
        """
        rows_nK = inputs.reshape(-1, inputs.shape[-1])
        absolute_nK = rows_nK.abs()
        self._absmax_K = torch.maximum(self._absmax_K, absolute_nK.amax(dim=0))
        if not bool(torch.isfinite(self._absmax_K).all()):
            raise CalibrationError(
                f"the inputs of {self.name} contain NaN or infinity; check the model's weights and the videos"
            )
        largest_n = absolute_nK.amax(dim=1).numpy().astype(np.float64)
        ticket_n = self._rng.random(len(largest_n))
        came_n = self._num_seen + np.arange(len(largest_n))
        self._num_seen += len(largest_n)
        new = np.flatnonzero((largest_n > self._least_largest) | (ticket_n > self._least_ticket))
        if len(new):
            self._keep(rows_nK[torch.from_numpy(new)], largest_n[new], ticket_n[new], came_n[new])

    def result(self) -> LayerStatistics:
        """Returns what was kept: the largest rows first, largest to smallest, then the others in random order.

        Raises:
            CalibrationError: no rows were seen.
        """
        if not self._num_seen:
            raise CalibrationError(f"the layer {self.name} was not computed for any sample, so it cannot be calibrated")
        extreme, drawn = self._chosen(self._largest_N, self._ticket_N, self._came_N)
        slots = torch.from_numpy(self._slot_N[np.concatenate((extreme, drawn))])
        return LayerStatistics(self._absmax_K, self._rows_NK[slots], self._num_seen, len(extreme))

    def _keep(
        self,
        rows_nK: Tensor,
        largest_n: NDArray[np.float64],
        ticket_n: NDArray[np.float64],
        came_n: NDArray[np.int64],
    ) -> None:
        """Chooses again from the kept rows and new ones, which go where dropped rows were."""
        num_old = len(self._slot_N)
        largest, ticket = np.concatenate((self._largest_N, largest_n)), np.concatenate((self._ticket_N, ticket_n))
        came = np.concatenate((self._came_N, came_n))
        extreme, drawn = self._chosen(largest, ticket, came)
        chosen = np.concatenate((extreme, drawn))
        old, new = chosen[chosen < num_old], chosen[chosen >= num_old]
        free = np.setdiff1d(np.arange(len(self._rows_NK)), self._slot_N[old])[: len(new)]
        self._rows_NK[torch.from_numpy(free)] = rows_nK[torch.from_numpy(new - num_old)]
        kept = np.concatenate((old, new))
        self._largest_N, self._ticket_N, self._came_N = largest[kept], ticket[kept], came[kept]
        self._slot_N = np.concatenate((self._slot_N[old], free))
        if len(extreme) == self._num_extreme:
            self._least_largest = largest[extreme].min(initial=np.inf)
        if len(drawn) == self._num_random:
            self._least_ticket = ticket[drawn].min(initial=np.inf)

    def _chosen(
        self, largest: NDArray[np.float64], ticket: NDArray[np.float64], came: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns which rows to keep for their values and which for their tickets; of equal rows, the earlier."""
        by_size = np.lexsort((came, -largest))
        extreme, others = by_size[: self._num_extreme], by_size[self._num_extreme :]
        return extreme, others[np.argsort(-ticket[others], kind="stable")[: self._num_random]]
