from __future__ import annotations

import numpy as np
import pytest
import torch
from recipe_models import all_rows

from blip3v.calibration.ranges import row_weights, static_scale
from blip3v.calibration.statistics import LayerStatistics


def test_rows_kept_for_their_values_stand_for_themselves() -> None:
    found = LayerStatistics(torch.ones(2), torch.ones(10, 2), num_seen=804, num_extreme=4)
    assert row_weights(found).tolist() == pytest.approx([1.0] * 4 + [800 / 6] * 6)
    assert row_weights(all_rows(torch.ones(3, 2), num_extreme=3)).tolist() == [1.0] * 3


def test_minmax_is_the_largest_value_that_was_ever_seen() -> None:
    found = LayerStatistics(torch.tensor([1.0, 9.0]), torch.ones(4, 2), num_seen=100, num_extreme=0)
    assert static_scale(found, "minmax") == pytest.approx(9 / 127)


def test_a_percentile_counts_what_the_rows_stand_for() -> None:
    """Of 1,000,000 values, those kept for their size are 10: fewer than one in 10,000."""
    values = torch.cat((torch.full((10, 1), 500.0), torch.linspace(0, 1, 990)[:, None]))
    found = LayerStatistics(torch.tensor([500.0]), values, num_seen=1_000_000, num_extreme=10)
    assert static_scale(found, "percentile") * 127 == pytest.approx(1.0, rel=0.02)
    many = LayerStatistics(torch.tensor([500.0]), values, num_seen=1_000, num_extreme=10)
    assert static_scale(many, "percentile") * 127 == pytest.approx(500, rel=0.02)


def test_mse_finds_the_least_squared_error() -> None:
    rows = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 40.0
    scale = static_scale(all_rows(rows), "mse")

    def error(clip: float) -> float:
        by = clip / 127
        return float(((np.clip(np.round(rows.numpy() / by), -127, 127) * by - rows.numpy()) ** 2).sum())

    least = min(error(clip) for clip in np.geomspace(1, 40, 400))
    assert error(scale * 127) <= 1.01 * least


def test_mse_does_not_count_inputs_that_meet_no_weight() -> None:
    rows = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    rows[:8, 5] = 1000.0
    importance = torch.ones(64)
    assert static_scale(all_rows(rows), "mse", importance) * 127 > 500
    importance[5] = 0.0
    assert static_scale(all_rows(rows), "mse", importance) * 127 < 6


def test_entropy_keeps_the_body_of_a_distribution_and_clips_its_far_values() -> None:
    rows = torch.randn(4000, 64, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 12.0
    assert 2.5 < static_scale(all_rows(rows), "entropy") * 127 < 8


def test_entropy_keeps_all_of_a_flat_distribution() -> None:
    rows = torch.linspace(-3, 3, 100_000).view(-1, 10)
    assert static_scale(all_rows(rows), "entropy") * 127 == pytest.approx(3, rel=0.02)


@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy", "mse"])
def test_inputs_that_are_always_zero_have_a_scale(rule) -> None:
    assert static_scale(all_rows(torch.zeros(5, 8)), rule) == 1.0


@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("value", [3.0, 1e-9], ids=["one value", "one value far below the largest"])
def test_inputs_that_are_almost_always_zero_have_a_scale(rule, value: float) -> None:
    """Once 99.99 % of zeros gave the percentile a scale of 0, and 0 / 0 was NaN."""
    rows = torch.zeros(1000, 64)
    rows[0, 0] = value
    found = LayerStatistics(torch.full((64,), 3.0), rows, num_seen=1000, num_extreme=0)
    assert 0 < static_scale(found, rule) * 127 <= 3.001


@pytest.mark.parametrize("rule", ["minmax", "percentile", "entropy", "mse"])
def test_a_range_follows_the_size_of_the_inputs(rule) -> None:
    rows = torch.randn(300, 32, generator=torch.Generator().manual_seed(3))
    assert static_scale(all_rows(rows * 64), rule) == pytest.approx(64 * static_scale(all_rows(rows), rule), rel=1e-5)
