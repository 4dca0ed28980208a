"""``blip3v eval --benchmark``: predictions of a model on a benchmark, their scores, and the paper's tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from blip3v.commands.eval_options import BenchmarkOptions, JudgeOptions
from blip3v.commands.eval_tables import loss_table, loss_text, paper_table, score_table
from blip3v.commands.output import talk, talk_console, write_json
from blip3v.commands.tables import print_table
from blip3v.data.readers import data_set
from blip3v.endpoint import AnswerCache, Client, Endpoint, Usage, estimate_usage
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.answerers import BundleClips, ClipAnswerer, ReferenceClips
from blip3v.evaluation.benchmark.comparing import Comparison, Outcome, compare
from blip3v.evaluation.benchmark.judge import JudgePrompt, requests_of
from blip3v.evaluation.benchmark.paper import PaperTable, markdown, paper_source, paper_tables
from blip3v.evaluation.benchmark.predicting import predict
from blip3v.evaluation.benchmark.predictions import Header, Prediction, PredictionFile, finished, read_predictions
from blip3v.evaluation.benchmark.results import SUFFIX, read_result, read_results, save_result
from blip3v.evaluation.benchmark.run import Asked, ask_of, header_of, judged, score, with_verdicts_of
from blip3v.evaluation.benchmark.scoring import judged_of, scored
from blip3v.evaluation.benchmark.tasks import benchmark
from blip3v.publishing import check_writable, write_file
from blip3v.strict_json import dumps
from blip3v.units import format_count

__all__ = ["BenchmarkRun"]

_TABLES = "tables.md"
_CACHE = "judge-cache"
_REPLY_TOKENS = 20  # of a verdict
_MAX_NAMES = 5


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A model that answers, and the files in which that is kept."""

    model: Path
    header: Header
    folder: Path

    @property
    def predictions(self) -> Path:
        return self.folder / f"{self.header.benchmark}.predictions.jsonl"

    @property
    def result(self) -> Path:
        return self.folder / f"{self.header.benchmark}{SUFFIX}"

    def beside(self, reference: _Place) -> Path:
        return self.folder / f"{self.header.benchmark}.beside-{reference.folder.name}.json"


class BenchmarkRun:
    """A benchmark, from the options to the printed tables. Making it reads the data and checks what costs nothing.

    Args:
        asked: what is asked.
        judging: who judges.
        data: the folder of the data; None: the user has not named one.
        num_questions: only so many, from the first.

    Raises:
        UsageError: options that do not go together, or the data is not there.
        ConfigError: the data is not in the published form.
    """

    def __init__(
        self, asked: BenchmarkOptions, judging: JudgeOptions, data: Path | None, num_questions: int | None
    ) -> None:
        task = benchmark(asked.benchmark or "")
        if data is None:
            how = data_set(task.data_set).about.how_to_get(asked.split or task.split)
            raise UsageError(
                f"--benchmark {task.name} needs its data; {how}\n"
                f"then name the folder: `blip3v eval --benchmark {task.name} --data FOLDER -m MODEL`"
            )
        self._options, self._judging = asked, judging
        self._judge = judging.endpoint()
        self._prompt = JudgePrompt.load(judging.judge_prompt) if judging.judge_prompt else JudgePrompt.ours()
        self._asked = ask_of(task, data, split=asked.split, limit=num_questions)
        if self._asked.form == "choice" and self._judge is not None:
            raise UsageError(f"--judge has no effect on {task.name}, whose answers are scored by the option they name")
        if self._asked.form != "choice" and asked.choose_by is not None:
            raise UsageError(f"--choose-by has no effect on {task.name}, whose questions have no options")

    def run(
        self, models: Sequence[Path], *, device: str, backend: str, force: bool, output: Path | None, as_json: bool
    ) -> None:
        """Asks, scores, and prints.

        Args:
            models: the model, and what it is compared with, if anything.
            device: for model folders.
            backend: for bundles.
            force: whether predictions are made anew.
            output: where the record is written too.
            as_json: whether it is printed, in place of tables.

        Raises:
            UsageError: the model is compared with itself, or the two were judged by different judges.
        """
        _tell_missing(self._asked)
        places = [self._place(model) for model in models]
        if len({one.header.model_digest for one in places}) < len(places):
            raise UsageError(f"{models[1]} is the model itself; compare {models[0]} with another one")
        for place in places:
            check_writable(place.predictions)
        judge = None if self._judge is None else self._client(self._judge)  # one, since the limit of its cost is one
        outcomes = []
        for place in places:
            predictions = self._predictions(place, device, backend, force=force)
            outcomes.append(self._score(place, predictions, judge))
            save_result(outcomes[-1].result, place.result)
        comparison = self._compared(outcomes, places) if len(places) > 1 else None
        self._show(outcomes, comparison, places, output, as_json=as_json)

    def _place(self, model: Path) -> _Place:
        header = header_of(self._asked, model, self._options.choose_by or "answer")
        folder = self._options.folder / f"{header.model}-{header.model_digest[:8]}"
        return _Place(model=model, header=header, folder=folder)

    def _predictions(self, place: _Place, device: str, backend: str, *, force: bool) -> list[Prediction]:
        """Asks what is not answered yet."""
        predictions = None if force else finished(place.predictions, place.header)
        if predictions is not None:
            talk(f"{place.predictions} has all predictions; --force makes them anew")
            return predictions
        with _opened(place, device, backend) as answerer:
            versions = {**place.header.versions, **dict(answerer.versions)}
            header = replace(place.header, computed=answerer.computed, versions=versions)
            with _bar(f"{header.model}: questions", header.num_samples) as advance:
                return predict(
                    answerer,
                    self._asked.samples,
                    PredictionFile(place.predictions, header),
                    batch_size=self._options.questions_at_once,
                    choose_by=self._options.choose_by or "answer",
                    force=force,
                    progress=advance,
                )

    def _score(self, place: _Place, predictions: list[Prediction], judge: Client | None) -> Outcome:
        header, _ = read_predictions(place.predictions)
        result = score(header, predictions, place.predictions)
        for unread in result.unread[:_MAX_NAMES]:
            name = unread.key or unread.index
            talk(f"{header.model}: no answer to question {name} about {unread.video}: {unread.error}")
        if result.unread:
            num = format_count(len(result.unread), "question")
            talk(f"{header.model}: {num} without an answer, which count in no score")
        if judge is None:
            before = read_result(place.result) if place.result.exists() else None
            return Outcome(result=with_verdicts_of(result, before), predictions=predictions, judgement=None)
        answered = judged_of(scored(predictions))
        requests = [one for one in requests_of(self._prompt, answered) if not judge.is_cached(one)]
        talk(_price(estimate_usage(requests, completion_tokens=_REPLY_TOKENS), self._judging, len(answered)))
        with _bar(f"{header.model}: verdicts", len(answered)) as advance:
            return judged(result, predictions, judge, self._prompt, advance)

    def _compared(self, outcomes: Sequence[Outcome], places: Sequence[_Place]) -> Comparison:
        """Compares, and writes what came out next to the model's result."""
        comparison = compare(outcomes[1], outcomes[0])
        if comparison.judge is None and any(one.result.judge is not None for one in outcomes):
            talk("the judge's scores are not compared; name the judge again: its replies are in the cache")
        write_json(comparison.to_dict(), places[0].beside(places[1]))
        return comparison

    def _client(self, endpoint: Endpoint) -> Client:
        judging = self._judging
        cache = AnswerCache(self._options.folder / _CACHE)
        return Client(endpoint, cache=cache, prices=judging.judge_price, max_cost=judging.judge_max_cost)

    def _show(
        self,
        outcomes: Sequence[Outcome],
        comparison: Comparison | None,
        places: Sequence[_Place],
        output: Path | None,
        *,
        as_json: bool,
    ) -> None:
        """Writes the tables of all results in the folder; prints the scores, and the table that they are part of."""
        tables = paper_tables(read_results(self._options.folder))
        tables_path = self._options.folder / _TABLES
        page = "\n".join([*map(markdown, tables), f"The paper's figures: {paper_source()}"])
        write_file(tables_path, page + "\n")
        record = {"result": outcomes[0].result.to_dict(), "tables": [_table_dict(one) for one in tables]}
        record |= {"file": str(places[0].result)}
        if comparison is not None:
            record |= {"reference": outcomes[1].result.to_dict(), "comparison": comparison.to_dict()}
        if output is not None:
            write_json(record, output)
        if as_json:
            click.echo(dumps(record), nl=False)
        else:
            console = Console(highlight=False)
            print_table(console, score_table(outcomes[0].result) if comparison is None else loss_table(comparison))
            if comparison is not None:
                console.print(loss_text(comparison), soft_wrap=True, markup=False)
            for one in tables:
                if one.number == self._asked.benchmark.table:
                    print_table(console, paper_table(one))
                    console.print("\n".join(one.notes), style="dim", markup=False)
        written = [path for one in places for path in (one.predictions, one.result)]
        written += [places[0].beside(places[1])] if comparison is not None else []
        for path in (*written, tables_path, *([output] if output else [])):
            talk(f"wrote {path}")


@contextlib.contextmanager
def _opened(place: _Place, device: str, backend: str) -> Iterator[ClipAnswerer]:
    if place.header.model_kind != "bundle":
        yield ReferenceClips(place.model, device=device)
        return
    with BundleClips(place.model, backend=backend) as bundle:
        yield bundle


@contextlib.contextmanager
def _bar(name: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; gives what moves it to a number done."""
    console = talk_console()
    with Progress(console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done: bar.update(task, completed=done)


def _tell_missing(asked: Asked) -> None:
    if not asked.missing:
        return
    names = ", ".join(list(asked.missing)[:_MAX_NAMES]) + (", ..." if len(asked.missing) > _MAX_NAMES else "")
    clips, questions = format_count(len(asked.missing), "clip"), format_count(sum(asked.missing.values()), "question")
    talk(f"the folder lacks {clips} of the annotations, with {questions}, which count in no score: {names}")


def _price(usage: Usage, judging: JudgeOptions, num_answers: int) -> str:
    """What judging will take, before it begins."""
    cached = num_answers - usage.num_requests
    text = f"judging {format_count(num_answers, 'answer')} with {judging.judge_model}, {cached} in the cache"
    if usage.num_requests == 0:
        return text
    text += f": about {usage.prompt_tokens + usage.completion_tokens} tokens"
    return text if judging.judge_price is None else f"{text}, which cost about {usage.cost(judging.judge_price):.2g}"


def _table_dict(table: PaperTable) -> dict[str, Any]:
    return {
        "number": table.number,
        "title": table.title,
        "columns": list(table.columns),
        "rows": [{**vars(row), "cells": list(row.cells)} for row in table.rows],
        "notes": list(table.notes),
    }
