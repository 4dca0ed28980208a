"""A result against an earlier one."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from bench_samples import report, row

from blip3v.bench.compare import check_same, compare
from blip3v.bench.results import Result
from blip3v.errors import UsageError


def result(scale: float = 1.0, **changed: Any) -> Result:
    found = report(row([scale] * 3), row([scale / 2] * 3, encoder="tokenlearner")).to_dict()
    return {**found, **changed}


def _check(baseline: Result, now: Result, *, allow: bool = False) -> tuple[str, ...]:
    bundles = {one["name"]: one["manifest_sha256"] for one in now["rows"]}
    return check_same(
        baseline, setup=now["setup"], environment=now["environment"], bundles=bundles, allow_other_setup=allow
    )


def test_medians_within_the_tolerance_are_not_worse() -> None:
    found = compare(result(1.05), result(), tolerance=0.1)
    assert len(found.medians) == 2 * 8
    assert {round(median.ratio, 6) for median in found.medians} == {1.05}
    assert found.worse == ()
    assert compare(result(0.5), result(), tolerance=0.0).worse == ()


def test_every_median_beyond_the_tolerance_is_worse() -> None:
    now = result()
    now["rows"][1]["stages"]["prefill_s"]["p50"] *= 1.2
    now["rows"][0]["metrics"]["inter_token_latency_s"]["p50"] *= 1.11
    found = compare(now, result(), tolerance=0.1)
    assert [(median.row, median.quantity) for median in found.worse] == [
        ("1024, none", "inter_token_latency_s"),
        ("32, tokenlearner", "prefill_s"),
    ]
    flags = [median["is_worse"] for median in found.to_dict()["medians"]]
    assert sum(flags) == 2


def test_the_same_setup_machine_and_bundles_compare_whatever_the_number_of_turns() -> None:
    other = result()
    other["setup"] = other["setup"] | {"repetitions": 99, "warmup": 0, "clip": "renamed.mp4"}
    other["environment"] = other["environment"] | {"date": "2027-01-01", "packages": {"numpy": "9"}}
    assert _check(other, result()) == ()


@pytest.mark.parametrize(
    ("part", "name", "value", "says"),
    [
        ("setup", "new_tokens", 64, "new_tokens was 64 and is 32"),
        ("setup", "clip_sha256", "ef" * 32, "clip_sha256 was efefefefefefefef and is cdcdcdcdcdcdcdcd"),
        ("environment", "cpu", "another CPU", "cpu was another CPU and is a CPU"),
        ("environment", "usable_cpus", 4, "usable_cpus was 4 and is 2"),
    ],
)
def test_another_setup_or_machine_is_refused_unless_allowed(part: str, name: str, value: object, says: str) -> None:
    other = result()
    other[part] = other[part] | {name: value}
    with pytest.raises(UsageError, match=says):
        _check(other, result())
    assert _check(other, result(), allow=True) == (says,)


def test_another_bundle_is_refused_unless_allowed_and_then_compared_by_its_kind() -> None:
    now = result(2.0)
    for one in now["rows"]:
        one["manifest_sha256"] = "12" * 32
    with pytest.raises(UsageError, match=r"bundle-none \(manifest 1212121212121212\) is not in it") as refused:
        _check(result(), now)
    assert "allow_other_setup=True" in refused.value.remedy
    found = compare(now, result(), tolerance=0.1, differences=_check(result(), now, allow=True))
    assert len(found.differences) == 2
    assert len(found.worse) == len(found.medians)


def test_of_two_rows_of_a_kind_the_very_bundle_is_compared() -> None:
    baseline = result()
    slower = copy.deepcopy(baseline["rows"][0]) | {"manifest_sha256": "34" * 32}
    slower["stages"] = {name: figures | {"p50": 100.0} for name, figures in slower["stages"].items()}
    baseline["rows"].insert(0, slower)
    assert {median.ratio for median in compare(result(), baseline, tolerance=0.1).medians} == {1.0}


def test_rows_that_the_baseline_has_not_are_named() -> None:
    baseline = result()
    del baseline["rows"][1]
    assert compare(result(), baseline, tolerance=0.1).unmatched == ("32, tokenlearner",)
    baseline["rows"][0]["precision"] = "fp32"
    with pytest.raises(UsageError, match="the baseline has no row of the same encoder"):
        compare(result(), baseline, tolerance=0.1)
