from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from recipe_models import KnownStatistics, all_rows
from torch import Tensor

from blip3v.calibration.fake import LayerFormat, on_grid
from blip3v.calibration.ranges import static_scale
from blip3v.calibration.smoothing import Fold, factors, smooth
from blip3v.calibration.transformed import Changed
from blip3v.config import preset

TEXT = preset("tiny").text
INT8 = LayerFormat(bits=8, group_size=None, ranges="minmax")
INT4 = LayerFormat(bits=4, group_size=32, ranges=None)
FOLD = Fold(layers=("linear",), divided={"norm.weight": 0, "norm.bias": 0})


def inputs_and_weight() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(200, 64, generator=generator), torch.randn(48, 64, generator=generator) / 8


def smoothed(rows: Tensor, weight: Tensor, how: LayerFormat) -> Changed:
    weights = {"linear.weight": weight, "norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    model = Changed(weights, KnownStatistics({"linear": all_rows(rows)}))
    return smooth(model, [FOLD], lambda layer: how, TEXT)


def error(model: Changed, how: LayerFormat) -> float:
    found, weight = model.statistics.layer("linear"), model.weights["linear.weight"]
    rows = found.rows_NK if how.ranges is None else on_grid(found.rows_NK, static_scale(found, how.ranges))
    return float((rows @ how.rounded(weight).T - found.rows_NK @ weight.T).square().mean())


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_the_factors_are_smoothquants(alpha: float) -> None:
    rows, weight = inputs_and_weight()
    inputs, weights = rows.abs().amax(0).numpy(), weight.abs().amax(0).numpy()
    formula = inputs**alpha / weights ** (1 - alpha)
    got = factors(torch.from_numpy(inputs), torch.from_numpy(weights), alpha).numpy()
    np.testing.assert_allclose(got / got[0], formula / formula[0], rtol=1e-5)
    assert np.median(got) == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_factors_are_finite_and_capped(alpha: float) -> None:
    inputs = torch.tensor([0.0, 1e-30, 1.0, 1.0, 1e30, 1.0])
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0, 1e-30, 1e-30])
    got = factors(inputs, weights, alpha)
    assert torch.isfinite(got).all()
    assert (got >= 2.0**-12).all()
    assert (got <= 2.0**12).all()
    assert got[0] == 1
    assert torch.equal(factors(torch.zeros(3), torch.ones(3), alpha), torch.ones(3))
    assert torch.isfinite(factors(torch.ones(3), torch.zeros(3), alpha)).all()


@pytest.mark.parametrize("how", [INT8, INT4], ids=["int8", "int4"])
def test_channels_times_128_are_undone(how: LayerFormat) -> None:
    rows, weight = inputs_and_weight()
    scale = torch.ones(64)
    scale[[3, 40]] = 128.0
    plain, hard = smoothed(rows, weight, how), smoothed(rows * scale, weight / scale, how)
    assert error(hard, how) == pytest.approx(error(plain, how), rel=0.02)
    ratio = hard.weights["linear.weight"] / plain.weights["linear.weight"]
    torch.testing.assert_close(ratio, ratio[0, 0].expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize("how", [INT8, dataclasses.replace(INT8, ranges="mse"), INT4], ids=["int8", "mse", "int4"])
def test_smoothing_is_never_worse_than_none(how: LayerFormat) -> None:
    rows, weight = inputs_and_weight()
    none = Changed({"linear.weight": weight}, KnownStatistics({"linear": all_rows(rows)}))
    assert error(smoothed(rows, weight, how), how) <= 1.1 * error(none, how)
    rows[:, 7] *= 100
    none = Changed({"linear.weight": weight}, KnownStatistics({"linear": all_rows(rows)}))
    assert error(smoothed(rows, weight, how), how) < 0.5 * error(none, how)


def test_gain_and_bias_of_a_norm_are_divided() -> None:
    rows, weight = inputs_and_weight()
    rows[:, 7] *= 100
    model = smoothed(rows, weight, INT8)
    found = model.weights["linear.weight"][0] / weight[0]
    assert found[7] > 4 * found.median()
    for name in ("norm.weight", "norm.bias"):
        torch.testing.assert_close(model.weights[name] * found, torch.ones(64))
    torch.testing.assert_close(model.statistics.layer("linear").rows_NK * found, rows, rtol=1e-5, atol=1e-5)


def test_query_heads_share_the_factors_of_their_kv_head() -> None:
    fold = Fold(layers=("o",), num_heads=4, num_kv_heads=2)
    largest = torch.tensor([[1.0, 2.0], [3.0, 0.5], [4.0, 5.0], [6.0, 1.0]]).flatten()  # heads of two channels
    assert fold.shared(largest).tolist() == [3.0, 2.0, 6.0, 5.0]
    assert fold.spread(torch.tensor([3.0, 2.0, 6.0, 5.0])).tolist() == [3.0, 2.0, 3.0, 2.0, 6.0, 5.0, 6.0, 5.0]


def test_a_layer_that_is_not_quantised_is_left_alone() -> None:
    weights = {"linear.weight": torch.ones(48, 64), "norm.weight": torch.ones(64), "norm.bias": torch.ones(64)}
    model = smooth(Changed(weights, KnownStatistics({})), [FOLD], lambda layer: None, TEXT)
    assert all(model.weights[name] is weights[name] for name in weights)
