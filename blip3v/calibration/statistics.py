"""What calibration knows about the inputs of each linear layer, and the folder that holds it.

The folder has ``calibration.json`` (model, data, hashes, settings) and ``statistics.safetensors`` (for each layer
``NAME.absmax`` and ``NAME.rows``), from which a layer is read when it is asked for. The rows are inputs that were
really seen: those with the largest values, and a random sample of the others. Smoothing, rotation, ranges and rounding
all work on them, so that one calibration serves every precision.
"""

# Shapes: N sampled rows, K inputs.

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

__all__ = ["LayerStatistics", "Statistics"]


@dataclass(frozen=True)
class LayerStatistics:
    """The inputs of one linear layer.

    Attributes:
        absmax_K: fp32, the largest absolute value of each input over all rows that were seen.
        rows_NK: fp32, a sample of the rows: first those with the largest values, then random ones.
        num_seen: rows that were seen.
        num_extreme: how many of ``rows_NK`` were kept for their large values.
    """

    absmax_K: Tensor
    rows_NK: Tensor
    num_seen: int
    num_extreme: int


class Statistics(Protocol):
    """The statistics of every layer of a model."""

    def layer(self, name: str) -> LayerStatistics:
        """Returns those of the layer ``name``, as ``linear_layers`` names it.

        Raises:
            CalibrationError: the layer was not calibrated.
        """
        ...
