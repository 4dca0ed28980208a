"""Trains `tiny` with every temporal encoder of the paper's Tables 3 to 5 and with its rivals' token reducers.

    python scripts/ablation.py WORK benchmarks/results/ablation.json
    python scripts/ablation.py WORK benchmarks/results/ablation.json --device cuda --seeds 1 2 3
    python scripts/ablation.py WORK-4 benchmarks/results/ablation-longer.json --only pllava --epochs 4
    python scripts/plot_ablation.py benchmarks/results/ablation.json docs/study.md docs/ablation.png

Every model starts from the same weights, sees the same films in the same order and takes the same steps
(`ablation.toml`); only the temporal encoder starts at random. Then it answers the 2,000 held-out questions. The patch
tokens of the frozen vision encoder are computed once. A model that is in the JSON is not trained again, and one that
was interrupted goes on from its checkpoint in WORK: the command may be stopped and run again at any time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from blip3v.data.film import Film
from blip3v.data.questions import Question
from blip3v.evaluation.exact_match import evaluate, is_right
from blip3v.evaluation.reference import ReferenceAnswerer
from blip3v.training.broken import BrokenClip
from blip3v.training.loop import StageSummary
from blip3v.training.options import TrainOptions, checkpoint_folder
from blip3v.training.recipe import PlannedStage, Recipe, load_recipe
from blip3v.training.run import train
from scripts.full_size_report import ROOT, Report

RECIPE = ROOT / "scripts/ablation.toml"
BASE = ROOT / "blip3v/models/tiny-none"
NUM_QUESTIONS = 2000


@dataclass(frozen=True)
class Arm:
    """One model of the ablation. Its tables: `ablation_paper.json`."""

    encoder: str
    num_video_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # others than those of the preset

    @property
    def name(self) -> str:
        """Tells it from the others."""
        return " ".join((self.encoder, str(self.num_video_tokens), *(f"{k}={v}" for k, v in self.settings.items())))


ARMS = (
    Arm("tokenlearner", 32),
    Arm("gttm", 128),
    Arm("per-frame", 32),
    Arm("space-time-pool", 32),
    Arm("tokenlearner", 128),
    Arm("single-frame", 128),
    Arm("mean", 128),
    Arm("transformer", 128),
    Arm("ttm", 128),
    Arm("gttm", 32),
    Arm("video-chatgpt", 72),
    Arm("pllava", 128),
    Arm("slowfast-llava", 96),
    Arm("llama-vid-content", 8),
    Arm("gttm", 16),
    Arm("gttm", 256),
    Arm("perceiver", 128),
    Arm("pllava", 32),
    Arm("tokenlearner", 128, {"time_stamps": False}),
)


def main(words: Sequence[str] | None = None) -> None:
    """Runs what is not in the JSON yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="where the models and the features go")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", metavar="ENCODER", help="these encoders alone, without the base")
    parser.add_argument("--epochs", type=float, help="instead of the recipe's; wants a WORK and a JSON of its own")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--questions", type=int, default=NUM_QUESTIONS)
    options = parser.parse_args(words)
    recipe, arms = load_recipe(str(options.recipe)), [x for x in ARMS if not options.only or x.encoder in options.only]
    if options.epochs is not None:
        stages = [dataclasses.replace(stage, num_epochs=options.epochs) for stage in recipe.stages]
        recipe = dataclasses.replace(recipe, stages=tuple(stages))
    _check_recipe(options.output, recipe)
    command = "python scripts/ablation.py WORK OUTPUT" + (f" --epochs {options.epochs:g}" if options.epochs else "")
    head = {"command": command, "base": BASE.name, "recipe": recipe.to_dict(), "num_questions": options.questions}
    report = Report(options.work.resolve(), options.output, head)
    ablation = _Ablation(report, recipe, options.work.resolve(), options.device, options.questions)
    with _bars() as bars:
        whole = bars.add_task("models", total=len(arms) * len(options.seeds) + 1)
        for seed in options.seeds:
            for arm in arms:
                report.step(f"{arm.name}, seed {seed}", functools.partial(ablation.measure, arm, seed, bars))
                bars.advance(whole)
        if not options.only:  # last, since it reads all tokens anew for each word, which takes longer than any other
            report.step("base", lambda: _score(BASE, options.device, options.questions))
        bars.advance(whole)
    print(options.output)


def _check_recipe(output: Path, recipe: Recipe) -> None:
    """Ends the process if the JSON holds results of another recipe."""
    held = json.loads(output.read_text("utf-8")) if output.is_file() else {}
    if held.get("recipe", {}) != json.loads(json.dumps(recipe.to_dict())) and held.get("steps"):
        raise SystemExit(f"{output} holds results of another recipe; name another JSON and another folder")


@dataclass(frozen=True)
class _Ablation:
    """What every model shares."""

    report: Report
    recipe: Recipe
    work: Path
    device: str
    num_questions: int

    def measure(self, arm: Arm, seed: int, bars: Progress) -> dict[str, Any]:
        """Trains a model, or goes on with it, and asks it."""
        recipe = dataclasses.replace(
            self.recipe,
            encoder=arm.encoder,
            num_video_tokens=arm.num_video_tokens,
            temporal=dict(arm.settings),
            seed=seed,
        )
        output = self.work / f"{arm.name} seed {seed}".replace(" ", "-")
        resume = checkpoint_folder(output).is_dir()
        options = TrainOptions(
            output=output, init=BASE, cache=self.work / "features", device=self.device, resume=resume, workers=0
        )
        screen = _Screen(bars, arm.name)
        model = train(recipe, options, screen)
        screen.close()
        records = [json.loads(line) for line in (output / "log.jsonl").read_text("utf-8").splitlines()]
        shutil.rmtree(checkpoint_folder(output))
        return {
            "encoder": arm.encoder,
            "num_video_tokens": arm.num_video_tokens,
            "settings": dict(arm.settings),
            "seed": seed,
            "resumed": resume,
            "loss": [[record["step"], record["loss"]] for record in records],
            **_score(model, self.device, self.num_questions),
        }


def _score(model: Path, device: str, num_questions: int) -> dict[str, Any]:
    """Exact match, and which of the held-out questions were answered right: one digit each, in their order."""
    noting = _Noting(ReferenceAnswerer(model, device=device))
    report = evaluate(noting, num_questions=num_questions)
    return {"evaluation": report.to_dict(), "right": "".join("01"[x] for x in noting.right)}


class _Noting:
    """Passes on the answers of a model, and notes which are right."""

    def __init__(self, model: ReferenceAnswerer) -> None:
        self._model = model
        self.right: list[bool] = []

    def answer(self, film: Film, questions: Sequence[Question]) -> list[str]:
        """The model's answers."""
        texts = self._model.answer(film, questions)
        self.right += [is_right(question, text) for text, question in zip(texts, questions, strict=True)]
        return texts


def _bars() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns)


class _Screen:
    """The bar of one model."""

    def __init__(self, bars: Progress, name: str) -> None:
        self._bars, self._name = bars, name
        self._task: TaskID = bars.add_task(name, total=None)

    def close(self) -> None:
        """Removes the bar."""
        self._bars.remove_task(self._task)

    def start(self, origin: dict[str, str]) -> None:
        """Nothing to show."""

    def stage(self, index: int, planned: PlannedStage) -> None:
        """Nothing to show."""

    def features(self, done: int, total: int) -> None:
        """Shows how far the features are."""
        self._bars.update(self._task, description="features", completed=done, total=total)

    def step(self, step: int, num_steps: int, loss: float) -> None:
        """Shows the loss."""
        self._bars.update(self._task, description=f"{self._name}, loss {loss:.3f}", completed=step, total=num_steps)

    def broken(self, clip: BrokenClip) -> None:
        """Films are made here: none is broken."""

    def end(self, summary: StageSummary) -> None:
        """Nothing to show."""


if __name__ == "__main__":
    main()
