from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest
from bench_samples import report, row
from hypothesis import given
from hypothesis import strategies as st

from blip3v.bench import Statistics
from blip3v.bench.report import LANGUAGE_MODEL, WHOLE_CHAIN


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=50))
def test_statistics_are_those_of_the_standard_library(values: list[float]) -> None:
    found = Statistics.of(values)
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert math.isclose(found.mean, statistics.fmean(values), rel_tol=1e-9)
    assert math.isclose(found.std, statistics.stdev(values), rel_tol=1e-6, abs_tol=1e-9)
    expected = [statistics.median(values), cuts[89], cuts[98]]
    np.testing.assert_allclose([found.p50, found.p90, found.p99], expected, rtol=1e-9)
    assert found.n == len(values)


def test_one_value_has_no_spread() -> None:
    assert Statistics.of([2.0]) == Statistics(mean=2.0, std=0.0, p50=2.0, p90=2.0, p99=2.0, n=1)


def test_samples_per_second_come_from_the_median() -> None:
    found = row([1, 2, 30])
    assert found.per_second(WHOLE_CHAIN) == pytest.approx(1 / 52)
    assert found.per_second(LANGUAGE_MODEL) == pytest.approx(1 / 39)


def test_a_machine_that_slows_down_does_not_change_the_ratio() -> None:
    """The baseline takes twice as long in every turn, while the machine slows down by varying factors."""
    drift = [1.0, 1.1, 4.0, 9.0]
    fast, slow = row(drift, encoder="tokenlearner"), row([2 * scale for scale in drift])
    assert fast.ratio(WHOLE_CHAIN, slow) == pytest.approx(2)
    assert slow.ratio(LANGUAGE_MODEL, slow) == 1


def test_json_holds_every_sample_and_the_figures_from_them() -> None:
    slow, fast = row([2, 4, 6]), row([1, 2, 2], encoder="tokenlearner", weights="untrained")
    found = json.loads(json.dumps(report(slow, fast).to_dict(), allow_nan=False))
    assert set(found) == {"schema_version", "command", "setup", "environment", "limits", "baseline", "rows"}
    assert found["baseline"] == "bundle-none"
    assert (found["setup"]["question_tokens"], found["setup"]["new_tokens"]) == (32, 32)
    entry = found["rows"][1]
    assert (entry["batch_size"], entry["requests_at_once"]) == (1, 1)
    assert entry["weights"] == "untrained"
    assert entry["whole_chain"] == {"samples_per_s": pytest.approx(1 / 52), "ratio": pytest.approx(2)}
    assert len(entry["samples"]) == 3
    prefill = [sample["prefill_s"] for sample in entry["samples"]]
    assert entry["stages"]["prefill_s"]["mean"] == pytest.approx(statistics.fmean(prefill))
    assert entry["stages"]["per_token_s"]["p50"] == pytest.approx(1.0)


def test_without_the_baseline_there_are_no_ratios() -> None:
    found = report(row([1, 2], encoder="tokenlearner"))
    assert found.to_dict()["baseline"] is None
    assert found.to_dict()["rows"][0]["whole_chain"]["ratio"] is None


def test_one_bundle_at_several_counts_is_its_own_baseline() -> None:
    own, all_of_them = row([1, 1], encoder="gttm"), row([2, 2], encoder="gttm", num_video_tokens=1024)
    found = report(all_of_them, own)
    assert found.baseline is all_of_them
    assert [entry["language_model"]["ratio"] for entry in found.to_dict()["rows"]] == [1.0, 2.0]
