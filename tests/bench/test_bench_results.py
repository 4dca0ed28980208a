"""Results read back, and the files that are made of them."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from bench_samples import report, row

from blip3v.bench import Shape, plot
from blip3v.bench.csv_text import csv_text
from blip3v.bench.labels import row_labels, run_labels
from blip3v.bench.markdown_text import markdown_text
from blip3v.bench.results import Result, read_result
from blip3v.errors import ConfigError, UsageError

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
COMMITTED = ["bench-cpu.json", "bench-engines-cpu.json", "full-size-cpu.json"]


def result() -> Result:
    batch = dataclasses.replace(row([2, 2]), shape=Shape(batch_size=4))
    untrained = row([0.5, 0.5], encoder="tokenlearner", weights="untrained")
    found: Result = json.loads(json.dumps(report(row([1, 1]), batch, untrained).to_dict()))
    return found | {"command": "blip3v bench a|b"}


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_results_stay_readable(name: str) -> None:
    found = read_result(RESULTS / name)
    assert found["schema_version"] == 2
    assert all(one["batch_size"] == one["requests_at_once"] == 1 for one in found["rows"])
    assert "Samples per second" in markdown_text(found)
    assert len(csv_text(found).splitlines()) == 1 + len(found["rows"])


@pytest.mark.parametrize(
    ("values", "says"),
    [
        (
            {"schema_version": 3, "setup": {}, "environment": {}, "rows": [{}]},
            "schema_version 3; this blip3v reads 1 and 2",
        ),
        ({"schema_version": 2, "setup": {}, "environment": {}, "rows": []}, "is not a result of a measurement"),
        ({"answers": []}, "is not a result of a measurement"),
        ([], "JSON object is expected"),
    ],
    ids=["later", "no rows", "something else", "a list"],
)
def test_another_file_is_refused(values: Any, says: str, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=says):
        read_result(path)


def test_a_result_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps(result()))
    assert read_result(path) == result()


def test_a_line_of_csv_says_all_that_its_numbers_depend_on() -> None:
    lines = list(csv.DictReader(io.StringIO(csv_text(result()))))
    assert [line["batch_size"] for line in lines] == ["1", "4", "1"]
    assert float(lines[1]["whole_chain_samples_per_s"]) == pytest.approx(4 / 52)
    assert float(lines[0]["time_to_first_token_s_p50"]) == 10.5
    assert (lines[0]["prefill_s_n"], float(lines[0]["prefill_s_p99"])) == ("2", 4.0)
    for name in ("manifest_sha256", "setup_clip_sha256", "cpu", "packages", "command", "blip3v", "peak_rss_bytes"):
        assert all(line[name] for line in lines), name


def test_a_page_has_every_table_and_where_the_numbers_come_from() -> None:
    text = markdown_text(result())
    assert "| none fp16 | onnxruntime | batch 4 | 1024 | 0.0769 |" in text
    assert "| 32, tokenlearner, batch 1, untrained | ITL | 250 | 0 | 250 | 250 | 250 | 62 |" in text
    assert "- command: `blip3v bench a|b`" in text
    assert "- bundle-none: manifest sha256 abababababababab" in text


def test_labels_tell_only_what_differs() -> None:
    rows = result()["rows"]
    assert row_labels(rows[:1]) == ["1024"]
    assert row_labels(rows) == ["1024, none, batch 1", "1024, none, batch 4", "32, tokenlearner, batch 1, untrained"]
    assert run_labels(rows) == ["batch 1", "batch 4", "batch 1"]
    assert run_labels(rows[:1]) == [""]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_plot_is_the_same_from_the_same_result(suffix: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, second = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    plot.draw(result(), first)
    plot.draw(result(), second)
    assert first.read_bytes() == second.read_bytes()
    assert len(first.read_bytes()) > 10_000
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_the_svg_names_the_stages_and_the_paper(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    path = tmp_path / "plot.svg"
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        plot.draw(result(), path)
    text = path.read_text("utf-8")
    for words in (
        "video encoder",
        "decode steps",
        "the paper: training on an H100",
        "compare the shapes alone",
        "batch 4",
    ):
        assert words in text
    assert "blip3v bench a|b; 2026-01-01T00:00:00+00:00; bundle-none abab" in text


def test_another_ending_is_refused() -> None:
    with pytest.raises(UsageError, match=r"plot.jpg; its name has to end in .png, .svg, .pdf"):
        plot.check_plot(Path("plot.jpg"))
