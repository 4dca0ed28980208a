"""A model whose weights are changed when they are read, so that only one weight is in memory; and what its layers see.

    weights, statistics -> a step (rotation.py, smoothing.py) -> weights, statistics of the same function

Each step changes a weight by a function of that weight, and the inputs of a layer by a function of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from blip3v.calibration.layers import HEAD
from blip3v.calibration.statistics import LayerStatistics, Statistics
from blip3v.config import TextConfig
from blip3v.model.language import HEAD_MATRIX_NAMES, head_matrix

__all__ = [
    "Changed",
    "ChangedStatistics",
    "ChangedWeights",
    "InputChange",
    "WeightChange",
    "layer_weight",
    "weight_names",
    "with_inputs",
]

WeightChange = Callable[[Tensor], Tensor]  # fp32 to a new fp32 tensor of the same shape
InputChange = Callable[[LayerStatistics], LayerStatistics]


class ChangedWeights(Mapping[str, Tensor]):
    """Weights by released name, some of them changed on access.

    Args:
        source: the weights to read; never modified.
        changes: for the names that change; their weights become fp32.
    """

    def __init__(self, source: Mapping[str, Tensor], changes: Mapping[str, WeightChange]) -> None:
        unknown = sorted(changes.keys() - set(source))
        assert not unknown, f"changes of weights that the model lacks: {unknown}"
        self._source = source
        self._changes = dict(changes)

    def __getitem__(self, name: str) -> Tensor:
        weight = self._source[name]
        return self._changes[name](weight.float()) if name in self._changes else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)


class ChangedStatistics:
    """Statistics, those of some layers changed on access.

    Args:
        source: the statistics to read.
        changes: for the layers whose inputs change.
    """

    def __init__(self, source: Statistics, changes: Mapping[str, InputChange]) -> None:
        self._source = source
        self._changes = dict(changes)

    def layer(self, name: str) -> LayerStatistics:
        """See ``Statistics``."""
        found = self._source.layer(name)
        return self._changes[name](found) if name in self._changes else found


@dataclass(frozen=True)
class Changed:
    """A model between two steps."""

    weights: Mapping[str, Tensor]
    statistics: Statistics

    def changed(self, weights: Mapping[str, WeightChange], inputs: Mapping[str, InputChange]) -> Changed:
        """Returns the model after one more step."""
        return Changed(ChangedWeights(self.weights, weights), ChangedStatistics(self.statistics, inputs))


def with_inputs(found: LayerStatistics, change: WeightChange, *, diagonal: bool) -> LayerStatistics:
    """Applies ``change`` to the inputs of a layer.

    Args:
        found: the layer's statistics.
        change: maps rows (N, K) to rows (N, K).
        diagonal: whether it multiplies each input by a number. If not, the largest values after it are those of the
            rows, since those of all other rows are unknown.
    """
    rows_NK = change(found.rows_NK)
    absmax_K = change(found.absmax_K[None])[0].abs() if diagonal else rows_NK.abs().amax(dim=0)
    return dataclasses.replace(found, rows_NK=rows_NK, absmax_K=absmax_K)


def layer_weight(weights: Mapping[str, Tensor], layer: str, text: TextConfig) -> Tensor:
    """Returns the weight of a linear layer, fp32 (outputs, inputs)."""
    return head_matrix(weights, text) if layer == HEAD else weights[f"{layer}.weight"].float()


def weight_names(layer: str) -> tuple[str, ...]:
    """Returns the names of the tensors that hold the weight of a linear layer; they differ in their outputs."""
    return HEAD_MATRIX_NAMES if layer == HEAD else (f"{layer}.weight",)
