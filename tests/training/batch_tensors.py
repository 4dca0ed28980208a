"""Every tensor of a batch, however deep, found without the code that moves them."""

from __future__ import annotations

import dataclasses

from torch import Tensor


def tensors_of(value: object) -> list[Tensor]:
    """The tensors among the fields of a dataclass, and of the dataclasses among them."""
    if isinstance(value, Tensor):
        return [value]
    if not dataclasses.is_dataclass(value):
        return []
    return [tensor for field in dataclasses.fields(value) for tensor in tensors_of(getattr(value, field.name))]
