"""Writes the tables of study.md from the JSON of ablation.py, beside the paper's figures, and draws them.

    python scripts/plot_ablation.py benchmarks/results/ablation.json docs/study.md docs/ablation.png

It replaces what is between the page's markers, one pair for each table. Intervals are of 95 %, from films drawn with
replacement, since the questions about one film are not independent (percentile bootstrap; the same films for both
models of a difference). With several seeds, scores are means over them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # draws into files, even without a display

import matplotlib.pyplot as plt
import numpy as np
from numpy.typing import NDArray

from blip3v.data.questions import TIME_KINDS, test_questions
from blip3v.publishing import write_file
from scripts.page_tables import replace_table

SCRIPT = "plot_ablation.py"
PAPER = Path(__file__).with_name("ablation_paper.json")
BASE = "base"
# Of each table: the row that the others are compared with.
REFERENCES = {"3": "mean 128", "4": "tokenlearner 32", "5": "gttm 128", "rivals": "tokenlearner 32"}
_RESAMPLES = 2000
_COLOURS = {"the paper's": "#2a6f97", "pooling": "#8d99ae", "rivals'": "#e07a5f", "base": "#495057"}
_POOLING = ("mean", "max", "space-time-pool", "single-frame", "perceiver")

Right = NDArray[np.float64]  # for each question, the share of seeds whose model answers it


class Interval(NamedTuple):
    """A number of percent or points, and where it lies with 95 %."""

    value: float
    low: float
    high: float


class Scores:
    """The rows of a report, by their names, with the questions that they answered."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        if report.get("schema_version") != 1:
            raise SystemExit(f"the JSON has schema_version {report.get('schema_version')!r}; 1 is read")
        rows: dict[str, list[list[float]]] = {}
        self.num_seeds: dict[str, int] = {}
        self.num_tokens: dict[str, int] = {}
        for step in report["steps"]:
            name = step["name"].partition(", seed ")[0]
            rows.setdefault(name, []).append([float(digit) for digit in step["right"]])
            self.num_seeds[name] = len(rows[name])
            self.num_tokens[name] = step.get("num_video_tokens", 1024)
        self._right = {name: np.mean(found, axis=0) for name, found in rows.items()}
        films, kinds = zip(
            *((film.seed, question.kind) for film, question in test_questions(report["num_questions"])), strict=True
        )
        self._film = np.unique(films, return_inverse=True)[1]
        self._time = np.array([kind in TIME_KINDS for kind in kinds])

    def __contains__(self, name: str) -> bool:
        return name in self._right

    @property
    def names(self) -> list[str]:
        """Of all rows."""
        return list(self._right)

    def score(self, name: str, *, time: bool) -> Interval:
        """Percent of the questions, or of those that need time, that are answered right."""
        return self._mean(self._right[name], time)

    def difference(self, name: str, other: str, *, time: bool) -> Interval:
        """Points by which one row is above another."""
        return self._mean(self._right[name] - self._right[other], time)

    def _mean(self, values: Right, time: bool) -> Interval:
        chosen = self._time if time else np.ones_like(self._time)
        sums, counts = (np.bincount(self._film, weights=x * chosen) for x in (values, np.ones_like(values)))
        drawn = np.random.default_rng(0).integers(len(sums), size=(_RESAMPLES, len(sums)))
        means = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        return Interval(*(100 * float(x) for x in (values[chosen].mean(), low, high)))


def main(result: Path, page: Path, picture: Path) -> None:
    """Writes the tables and draws the picture."""
    report = json.loads(result.read_text("utf-8"))
    text = page.read_text("utf-8")
    for number, table in tables(report).items():
        text = replace_table(text, marker(number), table)
    write_file(page, text)
    draw(Scores(report), picture)


def marker(table: str) -> str:
    """What the page's marker of a table names."""
    return f"{SCRIPT}, {table}"


def tables(report: Mapping[str, Any]) -> dict[str, str]:
    """Tables in Markdown, by the number of the paper's."""
    scores, paper = Scores(report), json.loads(PAPER.read_text("utf-8"))["tables"]
    found = {number: _table(number, table, scores) for number, table in paper.items()}
    return {**found, BASE: _base(scores)}


def _table(number: str, table: Mapping[str, Any], scores: Scores) -> str:
    reference, columns = REFERENCES[number], [f"{column}, paper" for column in table["columns"]]
    head = [
        "encoder",
        "tokens",
        *columns,
        "films, %",
        "films that need time, %",
        f"points from {shown(reference)}, {reference.split()[1]} tokens",
    ]
    lines = [head, ["---", "---:", *(["---:"] * (len(head) - 2))]]
    for name, figures in table["rows"].items():
        cells = ["" if figures is None else f"{figure:.1f}" for figure in figures or [None] * len(columns)]
        lines.append([shown(name), name.split()[1], *cells, *_ours(name, reference, scores)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _ours(name: str, reference: str, scores: Scores) -> Iterator[str]:
    if name not in scores:
        yield from ("not run",) * 3
        return
    for time in (False, True):
        found = scores.score(name, time=time)
        yield f"{found.value:.1f} ({found.low:.1f} to {found.high:.1f})"
    if name == reference or reference not in scores:
        yield ""
    else:
        found = scores.difference(name, reference, time=False)
        yield f"{found.value:+.1f} ({found.low:+.1f} to {found.high:+.1f})"


def _base(scores: Scores) -> str:
    """What all start from."""
    if BASE not in scores:
        return "Not run."
    whole, time = (scores.score(BASE, time=time) for time in (False, True))
    return (
        f"`tiny-none`, which all start from, reads all 1,024 tokens and answers {whole.value:.1f} % "
        f"({whole.low:.1f} to {whole.high:.1f}), and {time.value:.1f} % of what needs time."
    )


def shown(name: str) -> str:
    """A row as people read it."""
    encoder, _, *settings = name.split()
    return f"`{encoder}`" + (", without time stamps" if settings == ["time_stamps=False"] else "")


def draw(scores: Scores, picture: Path) -> None:
    """Draws what each model gets right of what needs time, over the number of its tokens."""
    figure, axis = plt.subplots(figsize=(7.2, 4.4), dpi=160)
    rivals = json.loads(PAPER.read_text("utf-8"))["tables"]["rivals"]["rows"]
    of_time = {name: scores.score(name, time=True) for name in scores.names}
    for name, found in of_time.items():
        family, at = _family(name, rivals), scores.num_tokens[name]
        axis.errorbar(
            at, found.value, [[found.value - found.low], [found.high - found.value]], fmt="o", markersize=4,
            linewidth=1, color=_COLOURS[family],
        )  # fmt: skip
        label = "none (base)" if name == BASE else shown(name).replace("`", "")
        lift = 4 * _side(name, at, of_time, scores.num_tokens)  # labels of two that are level would cover each other
        axis.annotate(label, (at, found.value), xytext=(5, lift), textcoords="offset points", fontsize=6.5, va="center")
    axis.set_xscale("log", base=2)
    ticks = sorted(set(scores.num_tokens.values()))
    axis.set_xticks(ticks, [str(tick) for tick in ticks], fontsize=8)
    axis.set_xlabel("video tokens that the language model reads", fontsize=8)
    axis.set_ylabel("exact match on what needs time, %", fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", alpha=0.25)
    for family, colour in _COLOURS.items():
        axis.plot(
            [], [], "o", color=colour, markersize=4, label=f"{family} encoders" if family != BASE else "no encoder"
        )
    axis.legend(fontsize=7, frameon=False)
    figure.tight_layout()
    figure.savefig(picture, metadata={"Software": None})  # the same bytes from the same result


def _side(name: str, tokens: int, of_time: Mapping[str, Interval], num_tokens: Mapping[str, int]) -> int:
    """1, -1 or 0: above or below another row with as many tokens and about the same score, or alone."""
    near = [
        other
        for other, found in of_time.items()
        if num_tokens[other] == tokens and abs(found.value - of_time[name].value) < 2
    ]
    return 0 if len(near) == 1 else 1 if near[0] == name else -1


def _family(name: str, rivals: Collection[str]) -> str:
    encoder = name.split()[0]
    if encoder == BASE:
        return BASE
    if encoder in _POOLING:
        return "pooling"
    return "rivals'" if name in rivals and encoder != "tokenlearner" else "the paper's"


def _usage(words: Sequence[str]) -> None:
    if len(words) != 4:
        raise SystemExit("usage: python scripts/plot_ablation.py RESULT.json PAGE.md OUT.png")


if __name__ == "__main__":
    _usage(sys.argv)
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
