"""``blip3v eval --benchmark``: predictions of a model on a benchmark, their scores, and the paper's tables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress

from blip3v.commands.eval_options import BenchmarkOptions, JudgeOptions
from blip3v.commands.eval_tables import paper_table, score_table
from blip3v.commands.output import talk, talk_console, write_json
from blip3v.commands.tables import print_table
from blip3v.endpoint import AnswerCache, Client, Endpoint, Usage, estimate_usage
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.answerers import BundleClips, ClipAnswerer, ReferenceClips
from blip3v.evaluation.benchmark.judge import JudgePrompt, requests_of
from blip3v.evaluation.benchmark.paper import PaperTable, markdown, paper_source, paper_tables
from blip3v.evaluation.benchmark.predicting import predict
from blip3v.evaluation.benchmark.predictions import Header, Prediction, PredictionFile, finished, read_predictions
from blip3v.evaluation.benchmark.results import SUFFIX, Result, read_result, read_results, save_result
from blip3v.evaluation.benchmark.run import Asked, ask_of, header_of, how_to_get, judged, score, with_verdicts_of
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
            raise UsageError(
                f"--benchmark {task.name} needs its data: {how_to_get(task, asked.split)}; then name "
                f"the folder: `blip3v eval --benchmark {task.name} --data FOLDER -m MODEL`"
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
        self,
        model: Path,
        *,
        is_bundle: bool,
        device: str,
        backend: str,
        force: bool,
        output: Path | None,
        as_json: bool,
    ) -> None:
        """Asks, scores, and prints. The arguments are those of the command, checked."""
        asked = self._asked
        _tell_missing(asked)
        header = header_of(asked, model, self._options.choose_by or "answer")
        folder = self._options.folder / f"{header.model}-{header.model_digest[:8]}"
        path = folder / f"{header.benchmark}.predictions.jsonl"
        check_writable(path)
        predictions = None if force else finished(path, header)
        if predictions is None:
            with _opened(model, is_bundle=is_bundle, device=device, backend=backend) as answerer:
                predictions = self._predict(answerer, header, path, force=force)
        else:
            talk(f"{path} has all predictions; --force makes them anew")
        result_path = folder / f"{header.benchmark}{SUFFIX}"
        result = self._score(read_predictions(path)[0], predictions, path, result_path)
        save_result(result, result_path)
        self._show(result, result_path, output, as_json=as_json)

    def _predict(self, answerer: ClipAnswerer, header: Header, path: Path, *, force: bool) -> list[Prediction]:
        complete = replace(header, computed=answerer.computed, versions={**header.versions, **dict(answerer.versions)})
        with _bar("questions", header.num_samples) as advance:
            return predict(
                answerer,
                self._asked.samples,
                PredictionFile(path, complete),
                batch_size=self._options.questions_at_once,
                choose_by=self._options.choose_by or "answer",
                force=force,
                progress=advance,
            )

    def _score(self, header: Header, predictions: list[Prediction], path: Path, result_path: Path) -> Result:
        result = score(header, predictions, path)
        for unread in result.unread[:_MAX_NAMES]:
            talk(f"no answer to question {unread.key or unread.index} about {unread.video}: {unread.error}")
        if result.unread:
            talk(f"{format_count(len(result.unread), 'question')} without an answer, which count in no score")
        if self._judge is None:
            return with_verdicts_of(result, read_result(result_path) if result_path.exists() else None)
        client = self._client(self._judge)
        answered = judged_of(scored(predictions))
        requests = [one for one in requests_of(self._prompt, answered) if not client.is_cached(one)]
        talk(_price(estimate_usage(requests, completion_tokens=_REPLY_TOKENS), self._judging, len(answered)))
        with _bar("verdicts", len(answered)) as advance:
            return judged(result, predictions, client, self._prompt, advance)

    def _client(self, endpoint: Endpoint) -> Client:
        judging = self._judging
        cache = AnswerCache(self._options.folder / _CACHE)
        return Client(endpoint, cache=cache, prices=judging.judge_price, max_cost=judging.judge_max_cost)

    def _show(self, result: Result, path: Path, output: Path | None, *, as_json: bool) -> None:
        """Writes the tables of all results in the folder, and prints this result with the table that it is part of."""
        folder = self._options.folder
        tables = paper_tables(read_results(folder))
        page = "\n".join([*map(markdown, tables), f"The paper's figures: {paper_source()}"])
        write_file(folder / _TABLES, page + "\n")
        table = self._asked.benchmark.table
        record = {"result": result.to_dict(), "tables": [_table_dict(one) for one in tables], "file": str(path)}
        if output is not None:
            write_json(record, output)
        if as_json:
            click.echo(dumps(record), nl=False)
        else:
            console = Console(highlight=False)
            print_table(console, score_table(result))
            for one in tables:
                if one.number == table:
                    print_table(console, paper_table(one))
                    console.print("\n".join(one.notes), style="dim", markup=False)
        for written in (path.with_name(result.predictions), path, folder / _TABLES, *([output] if output else [])):
            talk(f"wrote {written}")


@contextlib.contextmanager
def _opened(model: Path, *, is_bundle: bool, device: str, backend: str) -> Iterator[ClipAnswerer]:
    if not is_bundle:
        yield ReferenceClips(model, device=device)
        return
    with BundleClips(model, backend=backend) as bundle:
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
