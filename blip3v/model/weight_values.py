"""Checks of weights' values, made when a tensor is read: every value is finite, and time stamps are the true ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from blip3v.errors import ArtifactError
from blip3v.model.blocks import sinusoid_frequencies

__all__ = ["check_values", "largest_value"]

_FREQUENCIES = "pos_emb.inv_freq"
# A checkpoint in bf16 has rounded them, and a folder converted from one holds the rounded values in fp32.
_FREQUENCY_ERROR = 2.0**-8


def check_values(name: str, tensor: Tensor, *, where: object) -> Tensor:
    """Returns ``tensor`` if a model can use its values.

    Args:
        name: the tensor's name.
        tensor: weights of a floating-point dtype. Other dtypes are refused by name and shape before.
        where: the file that holds it, as errors name it.

    Raises:
        ArtifactError: values that are not finite, or time-stamp frequencies other than the sinusoid's.
    """
    if not math.isfinite(largest_value(tensor)):
        count = int(tensor.isfinite().logical_not().sum())
        raise ArtifactError(
            f"{name} in {where} holds values that are not finite: {count} of {tensor.numel()}; the weights are "
            "broken: copy, download or train them again"
        )
    if name.endswith(_FREQUENCIES) and not _are_frequencies(tensor):
        raise ArtifactError(
            f"{name} in {where} holds other frequencies than 10000^(-2k/D), the only ones that the model computes "
            "with; the weights are broken or of another model: copy or download them again"
        )
    return tensor


def largest_value(tensor: Tensor) -> float:
    """Returns the largest absolute value; NaN or infinity if one value is. Takes no memory."""
    if tensor.numel() == 0 or not tensor.is_floating_point():
        return 0.0
    low, high = tensor.aminmax()
    return max(abs(low.item()), abs(high.item()))


def _are_frequencies(tensor: Tensor) -> bool:
    expected = sinusoid_frequencies(2 * tensor.numel())
    return bool(torch.isclose(tensor.float().reshape(-1), expected, rtol=_FREQUENCY_ERROR, atol=0.0).all())
