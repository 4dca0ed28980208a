"""What the batches of all stages have in common: dataclasses of tensors, which go to a device as a whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["Tensors"]

_Own = TypeVar("_Own", bound="Tensors")


@dataclass(frozen=True)
class Tensors:
    """Base of a frozen dataclass. Its fields are tensors, others of this kind, and values that have no device."""

    def to(self: _Own, device: torch.device) -> _Own:
        """The same tensors on ``device``; a copy from pinned memory is not waited for."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self: _Own) -> _Own:
        """The same tensors in pinned memory. The name is the one that torch's ``DataLoader`` looks for."""
        return self._with(lambda tensor: tensor.pin_memory())

    def _with(self: _Own, change: Callable[[Tensor], Tensor]) -> _Own:
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                changed[name] = change(value)
            elif isinstance(value, Tensors):
                changed[name] = value._with(change)
        return dataclasses.replace(self, **changed)
