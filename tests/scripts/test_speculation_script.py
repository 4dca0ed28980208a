"""The benchmark of speculation on a toy bundle: its ways give the same answers, and rates of right guesses are kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from scripts import speculation


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    return write_bundle(tmp_path_factory.mktemp("bundle") / "toy", config, Weights.random(config.text))


def test_captions_are_the_same_in_every_way(bundle: Path) -> None:
    measured = speculation.captions(bundle, 4, backend="onnxruntime", threads=1)
    assert [(row["ahead"], row["earlier_answers"]) for row in measured["rows"]] == [
        *((0, False), (4, False)),
        *((ahead, True) for ahead in speculation.AHEAD),
    ]
    plain = measured["rows"][0]
    for row in measured["rows"]:
        assert row["same"] == row["answers"] == 4
        assert row["new_tokens"] == plain["new_tokens"]
        assert row["tokens_a_run"] * row["runs"] == pytest.approx(plain["runs"])
    assert plain["faster"] == 1


def test_guesses_are_right_at_the_rate(bundle: Path) -> None:
    measured = speculation.forced(bundle, 20, 1, backend="onnxruntime", threads=1)
    rows = {(row["ahead"], row["rate"]): row for row in measured["rows"]}
    assert all(row["same"] == row["answers"] == 1 for row in rows.values())
    assert rows[4, 0.0]["tokens_a_run"] == 1
    assert rows[4, 1.0]["tokens_a_run"] == pytest.approx(19 / 4)
    assert 1 < rows[4, 0.7]["tokens_a_run"] < rows[4, 0.9]["tokens_a_run"]
    lines = speculation.table({"captions": [], "forced": [measured | {"bundle": "toy"}]}).splitlines()
    assert [len(line.split("|")) for line in lines if line.startswith("|")] == [8] * (2 + len(speculation.FORCED_AHEAD))
