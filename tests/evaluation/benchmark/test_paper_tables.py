"""The paper's tables with our rows: what each cell says, and where the paper's figures stand."""

from __future__ import annotations

from pathlib import Path

import pytest
from judge_record import JUDGE

from blip3v.errors import ConfigError
from blip3v.evaluation.benchmark.paper import NOT_JUDGED, NOT_RUN, markdown, paper_tables
from blip3v.evaluation.benchmark.predictions import Header
from blip3v.evaluation.benchmark.results import SUFFIX, Result, Score, Unread, read_results, save_result
from blip3v.evaluation.benchmark.tasks import BENCHMARKS


def result(benchmark: str, model: str = "mine", digest: str = "00", *, judged: float | None = None, **header) -> Result:
    task = BENCHMARKS[benchmark]
    scores = [Score(name="accuracy" if task.form == "choice" else "exact match", value=0.5, num=90)]
    if judged is not None:
        scores += [Score(name="judge accuracy", value=judged, num=90), Score(name="judge score", value=3.456, num=90)]
    return Result(
        header=Header(
            benchmark=benchmark,
            data_set=task.data_set,
            split=header.pop("split", task.split),
            form=task.form,
            num_samples=90,
            num_available=header.pop("num_available", 90),
            data_digest="",
            missing=header.pop("missing", {}),
            model=model,
            model_kind="bundle",
            model_digest=digest,
            num_video_tokens=32,
            precision=header.pop("precision", "int8"),
            computed="",
            question_prompt="",
            decoding={},
            versions={},
        ),
        predictions="p.jsonl",
        predictions_digest="",
        scores=tuple(scores),
        unread=(Unread(index=3, key="", video="v", error="broken"),),
        judge=None if judged is None else JUDGE,
        settings={},
        blip3v="1",
    )


def rows(results: list[Result], number: int) -> list[tuple[str, ...]]:
    (table,) = paper_tables(results, [number])
    return [(row.model, row.tokens, *row.cells) for row in table.rows if row.is_ours]


def test_a_cell_says_what_there_is():
    results = [
        result("msvd-qa", judged=0.7654),
        result("tgif-qa"),
        result("activitynet-qa", judged=1.0, num_available=95, missing={"a": 3, "b": 2}),
        result("nextqa"),
        result("miradata", judged=0.8067),
    ]
    assert rows(results, 1) == [("mine, int8", "32", "76.5/3.5", NOT_RUN, "100.0/3.5 (90 of 100)", NOT_JUDGED)]
    assert rows(results, 2) == [("mine, int8", "32", "50.0")]
    assert rows(results, 6) == [("mine, int8", "32", NOT_RUN, NOT_RUN, "80.67/3.46")]
    assert rows([], 1) == []


def test_each_model_has_a_row():
    """Also one that was asked nothing of this table, and another model of the same name."""
    results = [
        result("nextqa", precision="fp16"),
        result("nextqa", digest="01"),
        result("msvd-qa", "other", "02"),
    ]
    assert rows(results, 2) == [
        ("mine, fp16", "32", "50.0"),
        ("mine, int8", "32", "50.0"),
        ("other, int8", "32", NOT_RUN),
    ]


def test_notes_name_the_judge_and_other_splits():
    (table,) = paper_tables([result("msvd-qa", judged=0.5, split="val")], [1])
    assert "Our judge: judge-0613, prompt blip3v abababababab." in table.notes
    assert "mine on msvd-qa: split val." in table.notes
    (unjudged,) = paper_tables([result("msvd-qa")], [1])
    assert len(unjudged.notes) == 1


@pytest.mark.parametrize(
    ("number", "line"),
    [
        (1, "| BLIP-3-Video (v2) | 4B | 128 | 77.9/4.3 | 59.7/3.6 | 56.9/3.6 | 77.1/4.3 |"),
        (1, "| VideoChat | 7B | 32 | 56.3/2.8 | 45.0/2.5 | -/2.2 | 34.4/2.3 |"),
        (1, r"| Tarsier\* | 34B | 4608+ | 79.3/4.1 | 62.2/3.5 | 61.5/3.7 | - |"),
        (2, "| BLIP-3-Video | 4B | 128 | 77.1 |"),
        (6, "| LLaVA-OneVision | 7B | 1152 | 61.62/3.31 | 38.60/2.71 | 48.83/3.10 |"),
    ],
)
def test_the_papers_figures_stand_as_it_prints_them(number: int, line: str):
    (table,) = paper_tables([], [number])
    assert line in markdown(table).splitlines()


def test_every_benchmark_of_a_table_has_its_column():
    for table in paper_tables([]):
        assert [one.column for one in BENCHMARKS.values() if one.table == table.number] == list(table.columns)
        assert all(len(row.cells) == len(table.columns) for row in table.rows)


def test_results_come_back_as_they_were_written(tmp_path: Path):
    results = [result("msvd-qa", judged=0.5), result("nextqa")]
    for one in results:
        (tmp_path / "mine-00").mkdir(exist_ok=True)
        save_result(one, tmp_path / "mine-00" / f"{one.header.benchmark}{SUFFIX}")
    assert read_results(tmp_path) == results
    (tmp_path / "mine-00" / f"x{SUFFIX}").write_text('{"schema": 7}')
    with pytest.raises(ConfigError, match=r"x.result.json has schema 7; this version reads 1"):
        read_results(tmp_path)
