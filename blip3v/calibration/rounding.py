"""GPTQ: weights are rounded one input after another, and the next ones make up for the error (Frantar et al. 2022).

With H = X^T X of the calibrated inputs and H = U D U^T, U upper triangular with a diagonal of ones, the optimal order
of that paper is the feedback of QuIP (Chee et al. 2023), which needs no inverse of H:

    q[k] = round(w[k] + sum over i < k of (w[i] - q[i]) U[i, k])
"""

# Shapes: N outputs, K inputs, R rows, S inputs of a group, g groups.

from __future__ import annotations

import torch
from torch import Tensor

from blip3v.calibration.quantized import QuantizedMatrix, largest_value, scales_of

__all__ = ["clipped_scales", "gptq"]

_DAMPING = 0.01  # of the mean of H's diagonal, against directions that no row has
_BLOCK = 128  # inputs rounded before the error reaches the later ones
_CLIPS = 11  # ranges tried for a group, from the largest value down to _SMALLEST_CLIP of it
_SMALLEST_CLIP = 0.6


def gptq(
    weight_NK: Tensor, rows_RK: Tensor, weights_R: Tensor, *, bits: int, group_size: int | None
) -> QuantizedMatrix:
    """Rounds a weight so that the layer's outputs on the given inputs change least.

    Args:
        weight_NK: fp32.
        rows_RK: inputs of the layer, fp32.
        weights_R: how much each row counts.
        bits: 4 or 8.
        group_size: inputs that share a scale, which is chosen when the first of them is reached; None: all.
    """
    num_outputs, num_inputs = weight_NK.shape
    feedback_KK = _feedback(rows_RK, weights_R)
    importance_K = (rows_RK**2 * weights_R[:, None]).mean(dim=0)
    top = largest_value(bits)
    lowest = -top if bits == 8 else -top - 1
    weight_KN = weight_NK.T.contiguous()
    error_KN = torch.zeros_like(weight_KN)
    values_KN = torch.zeros(num_inputs, num_outputs, dtype=torch.int8)
    scales = [clipped_scales(weight_NK, bits, importance_K)] if group_size is None else []
    size = group_size or _BLOCK
    for first in range(0, num_inputs, size):
        last = min(first + size, num_inputs)
        target_SN = weight_KN[first:last] + feedback_KK[:first, first:last].T @ error_KN[:first]
        if group_size is not None:
            scales.append(clipped_scales(target_SN.T, bits, importance_K[first:last]))
        scale_N = scales[-1][:, 0]
        for at in range(first, last):
            fed_back_N = feedback_KK[first:at, at] @ error_KN[first:at]
            rounded_N = ((target_SN[at - first] + fed_back_N) / scale_N).round_().clamp_(lowest, top)
            values_KN[at] = rounded_N.to(torch.int8)
            error_KN[at] = weight_KN[at] - rounded_N * scale_N
    return QuantizedMatrix(values_KN.T.contiguous(), torch.cat(scales, dim=1), bits, group_size)


def clipped_scales(weight_NS: Tensor, bits: int, importance_S: Tensor) -> Tensor:
    """Returns the scale of each output, (N, 1), with the least squared error weighed by ``importance_S``.

    A range smaller than the largest value clips it, for the good of the others.
    """
    full_N1 = scales_of(weight_NS, bits, None)
    if bits == 8:  # clipping gains nothing
        return full_N1
    top = largest_value(bits)
    best_N1, least_N1 = full_N1, torch.full_like(full_N1, torch.inf)
    for ratio in torch.linspace(1.0, _SMALLEST_CLIP, _CLIPS).tolist():
        scale_N1 = full_N1 * ratio
        rounded_NS = (weight_NS / scale_N1).round_().clamp_(-top - 1, top).mul_(scale_N1)
        error_N1 = (rounded_NS.sub_(weight_NS).square_() @ importance_S)[:, None]
        best_N1 = torch.where(error_N1 < least_N1, scale_N1, best_N1)
        least_N1 = torch.minimum(error_N1, least_N1)
    return best_N1


def _feedback(rows_RK: Tensor, weights_R: Tensor) -> Tensor:
    """Returns U of H = U D U^T, (K, K)."""
    scaled_RK = rows_RK * (weights_R / weights_R.sum()).sqrt()[:, None]
    hessian_KK = scaled_RK.T @ scaled_RK
    diagonal_K = hessian_KK.diagonal()
    damping = _DAMPING * max(float(diagonal_K.mean()), torch.finfo(torch.float32).tiny)
    diagonal_K += damping
    # The Cholesky factor of H read backwards is lower triangular; read backwards again, it is upper.
    lower_KK, failed = torch.linalg.cholesky_ex(hessian_KK.flip(0, 1))
    while int(failed):
        diagonal_K += 9 * damping
        damping *= 10
        lower_KK, failed = torch.linalg.cholesky_ex(hessian_KK.flip(0, 1))
    upper_KK: Tensor = lower_KK.flip(0, 1)
    return torch.div(upper_KK, upper_KK.diagonal())
