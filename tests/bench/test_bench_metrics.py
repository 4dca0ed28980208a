"""Latency and throughput, by the formulas that vLLM and AIPerf document."""

from __future__ import annotations

import dataclasses

import pytest
from bench_samples import report, row, sample

from blip3v.bench import Metrics, RequestTimes, Sample, Shape
from blip3v.errors import UsageError


def _request(first_s: float, gaps_s: tuple[float, ...]) -> RequestTimes:
    return RequestTimes(
        time_to_first_token_s=first_s,
        end_to_end_s=first_s + sum(gaps_s),
        num_new_tokens=len(gaps_s) + 1,
        inter_token_s=gaps_s,
    )


def test_metrics_are_of_all_requests_of_all_turns() -> None:
    """Two turns of two requests at once: each request counts once, and a turn's time once for all of its requests."""
    first = (_request(1.0, (0.1, 0.3)), _request(2.0, (0.2, 0.2)))
    second = (_request(3.0, (0.4, 0.4)), _request(4.0, (0.1, 0.1)))
    turns = [dataclasses.replace(sample(), whole_chain_s=5.0, requests=requests) for requests in (first, second)]
    found = Metrics.of(turns)
    assert (found.time_to_first_token_s.mean, found.time_to_first_token_s.n) == (2.5, 4)
    assert found.time_per_output_token_s.mean == pytest.approx((0.2 + 0.2 + 0.4 + 0.1) / 4)
    assert found.inter_token_latency_s is not None
    assert found.inter_token_latency_s.n == 8
    assert found.inter_token_latency_s.p50 == pytest.approx(0.2)
    assert found.end_to_end_latency_s.mean == pytest.approx((1.4 + 2.4 + 3.8 + 4.2) / 4)
    assert found.request_throughput == pytest.approx(4 / 10)
    assert found.output_token_throughput == pytest.approx(12 / 10)


def test_gaps_that_nobody_saw_are_not_made_up() -> None:
    times = dataclasses.replace(sample().requests[0], inter_token_s=())
    found = Metrics.of([dataclasses.replace(sample(), requests=(times,) * 4)])
    assert found.inter_token_latency_s is None
    assert found.time_per_output_token_s.n == 4


def test_a_batch_counts_its_requests_and_parts_of_requests_at_once_have_no_speed() -> None:
    alone = row([1, 1])
    batch = dataclasses.replace(row([2, 2]), shape=Shape(batch_size=4))
    at_once = dataclasses.replace(row([2, 2]), shape=Shape(requests_at_once=4))
    assert batch.per_second("whole_chain_s") == pytest.approx(4 / 52)
    assert batch.ratio("language_model_s", alone) == pytest.approx(2)
    assert at_once.ratio("whole_chain_s", alone) == pytest.approx(2)
    assert (at_once.per_second("language_model_s"), at_once.tokens_per_s) == (None, None)
    found = report(dataclasses.replace(alone, bundle=batch.bundle), batch, at_once).to_dict()["rows"]
    assert [(one["batch_size"], one["requests_at_once"]) for one in found] == [(1, 1), (4, 1), (1, 4)]


def test_a_sample_survives_json() -> None:
    assert Sample.from_dict(dataclasses.asdict(sample())) == sample()
    assert "inter_token_s" not in sample().to_dict()["requests"][0]


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (2, 2)], ids=str)
def test_shapes_that_mean_nothing_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match=r"at least 1|two measurements"):
        Shape(batch_size=counts[0], requests_at_once=counts[1])
