"""Measures what the bundles of a shipped model lose on a benchmark: held-out films in the form of a published data set.

    python scripts/film_benchmark.py WORK benchmarks/results/film-benchmark.json
    python scripts/film_benchmark.py --only-data FOLDER

The films are H.264 files with the questions of the film set's split test, as a folder of Hugging Face `datasets`, the
form in which people keep their own data: a result on them has no place in the paper's tables. `blip3v eval --benchmark`
asks the model folder in PyTorch and each of its bundles. What is in WORK already is not made again.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from blip3v.bench.environment import describe_environment, load_average
from blip3v.data.mp4 import write_mp4
from blip3v.data.questions import test_questions
from blip3v.folders import shipped_model
from blip3v.publishing import new_folder
from blip3v.strict_json import dumps

ROOT = Path(__file__).resolve().parents[1]
MODEL = shipped_model("tokenlearner")
PRECISIONS = ("fp16", "int8", "int4")
NUM_QUESTIONS = 2000
_HEIGHT = 240
_FOLDER = "WORK"  # stands for the working folder in the commands of the JSON


def write_benchmark(folder: Path, num_questions: int = NUM_QUESTIONS) -> None:
    """Writes the first held-out questions and their films to ``folder``, atomically."""
    lines = []
    with new_folder(folder) as staging:
        (staging / "test").mkdir()
        for number, (film, question) in enumerate(test_questions(num_questions)):
            file = staging / "test" / f"{film.seed:05d}.mp4"
            if not file.exists():
                write_mp4(film, file, height=_HEIGHT)
            lines.append(
                {"id": str(number), "file_name": file.name, "question": question.text, "answer": question.answer}
            )
        (staging / "test" / "metadata.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines), "utf-8")


def main() -> None:
    """Runs what the module's docstring says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for films, bundles and predictions")
    parser.add_argument("output", type=Path, nargs="?", help="JSON file for the numbers")
    parser.add_argument("--only-data", action="store_true", help="write the benchmark to that folder, and stop")
    options = parser.parse_args()
    films = options.work if options.only_data else options.work / "films"
    if not films.exists():
        films.parent.mkdir(parents=True, exist_ok=True)
        write_benchmark(films)
    if options.only_data:
        return
    if options.output is None:
        parser.error("name the JSON file")
    for precision in PRECISIONS:
        if not (options.work / precision).exists():
            _run(["export", "-m", str(MODEL), "--precision", precision, "-o", str(options.work / precision)])
    rows = [_compared(options.work, films, precision) for precision in PRECISIONS]
    report = {
        "command": "python scripts/film_benchmark.py WORK benchmarks/results/film-benchmark.json",
        "environment": describe_environment() | {"load_average": load_average()},
        "rows": rows,
    }
    options.output.write_text(dumps(report), "utf-8")


def _compared(work: Path, films: Path, precision: str) -> dict[str, Any]:
    command = ["eval", "--benchmark", "huggingface", "--data", str(films), "-m", str(work / precision)]
    command += ["--reference", str(MODEL), "--results", str(work / "results"), "--json"]
    record = json.loads(_run(command))
    shown = shlex.join(["blip3v", *command]).replace(str(work), _FOLDER).replace(f"{ROOT}/", "")
    return {"command": shown, "comparison": record["comparison"]}


def _run(words: list[str]) -> str:
    return subprocess.run(
        [sys.executable, "-m", "blip3v", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


if __name__ == "__main__":
    main()
