"""Which rows of a stream are kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from blip3v.calibration.record import SamplingSettings
from blip3v.calibration.sampling import RowSampler
from blip3v.calibration.statistics import LayerStatistics
from blip3v.errors import CalibrationError, ConfigError


def sampled(calls: list[Tensor], *, name: str = "layer", **settings: int) -> LayerStatistics:
    sampler = RowSampler(name, calls[0].shape[-1], SamplingSettings(**settings))
    for rows in calls:
        sampler.add(rows)
    return sampler.result()


def numbered(count: int) -> Tensor:
    """Rows (i, size of i), whose sizes are in no order."""
    sizes = np.random.default_rng(3).permutation(count) + 1.0
    return torch.tensor(np.stack([np.arange(count) / count, sizes], axis=1), dtype=torch.float32)


def test_the_largest_rows_come_first_and_the_others_are_real_rows_kept_once() -> None:
    rows = numbered(500)
    kept = sampled([rows[:100].reshape(5, 20, 2), -rows[100:101], rows[101:]], num_rows=40, num_extreme=10)
    assert (kept.num_seen, kept.num_extreme, len(kept.rows_NK)) == (500, 10, 40)
    assert kept.rows_NK[:10, 1].abs().tolist() == list(range(500, 490, -1))
    assert torch.equal(kept.absmax_K, rows.abs().amax(dim=0))
    numbers = [round(abs(float(value)) * 500) for value in kept.rows_NK[:, 0]]
    assert len(set(numbers)) == 40
    assert all(abs(float(kept.rows_NK[at, 1])) == float(rows[number, 1]) for at, number in enumerate(numbers))


def test_the_sample_does_not_depend_on_how_the_rows_are_split_into_calls() -> None:
    rows = numbered(300)
    whole = sampled([rows], num_rows=30, num_extreme=5)
    for size in (1, 7, 64):
        split = sampled([*rows.split(size)], num_rows=30, num_extreme=5)
        assert torch.equal(split.rows_NK, whole.rows_NK)


def test_layers_and_seeds_draw_different_rows() -> None:
    rows = numbered(300)
    first = sampled([rows], num_rows=30, num_extreme=5)
    for other in (
        sampled([rows], num_rows=30, num_extreme=5, seed=1),
        sampled([rows], num_rows=30, num_extreme=5, name="other"),
    ):
        assert torch.equal(first.rows_NK[:5], other.rows_NK[:5])
        assert not torch.equal(first.rows_NK[5:], other.rows_NK[5:])


def test_every_row_is_drawn_equally_often() -> None:
    """Rows that were once among the largest, and were pushed out, too: sizes rise and fall."""
    count, times = 40, 600
    sizes = np.concatenate((np.arange(20), np.arange(20)[::-1])) + 1.0
    rows = torch.tensor(np.stack([np.arange(count), 1000 * sizes], axis=1), dtype=torch.float32)
    drawn = np.zeros(count)
    for seed in range(times):
        kept = sampled([*rows.split(6)], num_rows=12, num_extreme=4, seed=seed)
        drawn[kept.rows_NK[4:, 0].int().numpy()] += 1
    extreme = np.argsort(-sizes, kind="stable")[:4]
    assert drawn[extreme].tolist() == [0.0] * 4
    others = np.delete(drawn, extreme) / times
    assert others.mean() == pytest.approx(8 / 36)
    assert np.abs(others - 8 / 36).max() < 5 * np.sqrt(8 / 36 * 28 / 36 / times)


@pytest.mark.parametrize(("num_rows", "num_extreme"), [(8, 0), (8, 8), (8, 3), (1, 0)])
def test_fewer_rows_than_asked_for_are_all_kept(num_rows: int, num_extreme: int) -> None:
    for count in (1, 2, 5):
        rows = numbered(count)
        kept = sampled([rows], num_rows=num_rows, num_extreme=num_extreme)
        assert len(kept.rows_NK) == min(count, num_rows)
        assert kept.num_extreme == min(count, num_extreme)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_name_the_layer(bad: float) -> None:
    rows = numbered(10)
    rows[7, 0] = bad
    with pytest.raises(CalibrationError, match=r"inputs of blocks\.3 contain NaN or infinity"):
        sampled([rows], name="blocks.3")


def test_a_layer_that_never_ran_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"blocks\.3 was not computed for any sample"):
        RowSampler("blocks.3", 4, SamplingSettings()).result()


@pytest.mark.parametrize("wrong", [{"num_rows": 0}, {"num_extreme": 600}, {"num_extreme": -1}, {"seed": -1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="cannot be sampled"):
        SamplingSettings(**wrong)
