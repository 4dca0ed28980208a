"""GPTQ against the algorithm as its paper writes it, and against rounding to the nearest on held-out rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.calibration.quantized import QuantizedMatrix, nearest, scales_of
from blip3v.calibration.rounding import clipped_scales, gptq

NUM_INPUTS, NUM_OUTPUTS = 256, 64


def correlated_rows(num_rows: int, num_inputs: int, seed: int) -> Tensor:
    basis = torch.randn(24, num_inputs, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(num_rows, len(basis), generator=generator) @ basis
    return shared + torch.randn(num_rows, num_inputs, generator=generator)


def random_weight(num_inputs: int = NUM_INPUTS) -> Tensor:
    return torch.randn(NUM_OUTPUTS, num_inputs, generator=torch.Generator().manual_seed(1)) / num_inputs**0.5


def output_error(rounded: QuantizedMatrix, weight: Tensor, rows: Tensor) -> float:
    return float((rows @ (rounded.dequantized() - weight).T).square().mean())


def papers_gptq(weight_NK: NDArray[np.float64], rows_RK: NDArray[np.float64], scale_N1: NDArray[np.float64]) -> NDArray:
    """Algorithm 1 of the paper: the inverse's Cholesky factor, one column after another."""
    hessian = rows_RK.T @ rows_RK / len(rows_RK)
    hessian += 0.01 * hessian.diagonal().mean() * np.eye(len(hessian))
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, integers = weight_NK.copy(), np.zeros_like(weight_NK)
    for k in range(left.shape[1]):
        integers[:, k] = np.clip(np.round(left[:, k] / scale_N1[:, 0]), -127, 127)
        error_N = (left[:, k] - integers[:, k] * scale_N1[:, 0]) / upper[k, k]
        left[:, k:] -= np.outer(error_N, upper[k, k:])
    return integers


def test_it_is_the_papers_algorithm() -> None:
    weight, rows = random_weight(96), correlated_rows(400, 96, seed=2)
    got = gptq(weight, rows, torch.ones(len(rows)), bits=8, group_size=None)
    wanted = papers_gptq(weight.double().numpy(), rows.double().numpy(), got.scales_Ng.double().numpy())
    # A value between two integers may fall to either side in fp32, after which the others of its row follow.
    assert (got.values_NK.numpy() == wanted).all(axis=1).mean() > 0.9


@pytest.mark.parametrize(("bits", "group_size"), [(4, 128), (4, 32), (4, None), (8, 128), (8, None)])
def test_it_beats_nearest_on_rows_that_it_has_not_seen(bits: int, group_size: int | None) -> None:
    weight = random_weight()
    seen, held_out = correlated_rows(512, NUM_INPUTS, seed=3), correlated_rows(512, NUM_INPUTS, seed=4)
    better = gptq(weight, seen, torch.ones(len(seen)), bits=bits, group_size=group_size)
    plain = nearest(weight, scales_of(weight, bits, group_size), bits, group_size)
    assert output_error(better, weight, held_out) < 0.5 * output_error(plain, weight, held_out)
    assert better.scales_Ng.shape == plain.scales_Ng.shape
    assert (better.scales_Ng > 0).all()


@pytest.mark.parametrize("num_inputs", [40, 129])
def test_the_last_group_may_be_shorter(num_inputs: int) -> None:
    weight, rows = random_weight(num_inputs), correlated_rows(64, num_inputs, seed=5)
    got = gptq(weight, rows, torch.ones(64), bits=4, group_size=16)
    assert got.scales_Ng.shape == scales_of(weight, 4, 16).shape
    assert output_error(got, weight, rows) < output_error(
        nearest(weight, scales_of(weight, 4, 16), 4, 16), weight, rows
    )


def test_fewer_rows_than_inputs_and_inputs_that_are_always_zero() -> None:
    weight, rows = random_weight(), correlated_rows(16, NUM_INPUTS, seed=6)
    rows[:, 10:20] = 0.0
    got = gptq(weight, rows, torch.ones(16), bits=4, group_size=32)
    assert torch.isfinite(got.dequantized()).all()
    zero = gptq(weight, torch.zeros(8, NUM_INPUTS), torch.ones(8), bits=4, group_size=None)
    assert torch.isfinite(zero.dequantized()).all()


def test_a_weight_of_zeros_stays_zero() -> None:
    got = gptq(torch.zeros(3, 64), correlated_rows(32, 64, seed=7), torch.ones(32), bits=4, group_size=32)
    assert not got.dequantized().any()


def test_rows_count_by_their_weight() -> None:
    weight, rows = random_weight(), correlated_rows(64, NUM_INPUTS, seed=8)
    weights = torch.ones(64)
    weights[:32] = 1e6
    first = gptq(weight, rows, weights, bits=4, group_size=None)
    even = gptq(weight, rows, torch.ones(64), bits=4, group_size=None)
    assert output_error(first, weight, rows[:32]) < output_error(even, weight, rows[:32])


def test_clipping_gives_up_the_largest_for_the_others() -> None:
    weight = torch.linspace(-1, 1, 127)[None].clone()
    weight[0, 0] = 1.6
    scale = clipped_scales(weight, 4, torch.ones(127))
    assert 1.0 / 8 < float(scale) < 1.6 / 7
    assert float(clipped_scales(weight, 8, torch.ones(127))) == pytest.approx(1.6 / 127)
