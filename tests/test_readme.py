"""Does what the README tells a newcomer to do: runs the export command and the Python example, follows the links."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the example clips, in which the README's export command was run."""
    path = tmp_path_factory.mktemp("newcomer")
    shutil.copytree(ROOT / "examples", path / "examples")
    command = "blip3v export --encoder tokenlearner --precision fp16"
    assert f"`{command}`" in README
    done = subprocess.run([sys.executable, "-m", *command.split()], cwd=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return path


def test_the_python_example_runs_as_a_plain_script_and_prints_what_ask_prints(folder: Path) -> None:
    """It has no ``__main__`` guard, and the process that decodes the video must not run it again."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (folder / "six_lines.py").write_text(example)
    done = subprocess.run([sys.executable, "six_lines.py"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    video = re.findall(r'encode\("(.*?)"\)', example)[0]
    questions = re.findall(r'video, "(.*?)"\)', example)
    answers = []
    for question in questions:
        command = [sys.executable, "-m", "blip3v", "ask", video, question, "--json"]
        asked = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        answers.append(json.loads(asked.stdout)["text"])
    assert done.stdout.splitlines() == answers


def test_the_pictured_answer_is_what_the_shipped_model_says(folder: Path) -> None:
    """It is the true answer, too, according to the committed list of questions."""
    video, question = "turn.mp4", "Which way does the red circle turn?"
    clips = json.loads((ROOT / "examples/questions.json").read_text("utf-8"))["clips"]
    questions_of_clip = next(clip["questions"] for clip in clips if clip["file"] == video)
    true = next(item["answer"] for item in questions_of_clip if item["question"] == question)
    command = [sys.executable, "-m", "blip3v", "ask", f"examples/{video}", question]
    asked = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == true == "up then right"


def test_every_link_of_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)(.*?)\)", README):
        assert (ROOT / target).exists(), target


def test_the_scores_in_the_readme_are_the_committed_ones() -> None:
    """Every cell of the accuracy table, from the reports of the two models."""
    paths = ("blip3v/models/tiny-tokenlearner/evaluation.json", "benchmarks/results/tiny-single-frame-evaluation.json")
    model, one_frame = (json.loads((ROOT / path).read_text("utf-8")) for path in paths)
    want = {
        kind["kind"]: (kind["exact_match"], single["exact_match"], kind["commonest"], kind["blind"])
        for kind, single in zip(model["kinds"], one_frame["kinds"], strict=True)
    }
    want["all"] = (model["exact_match"], one_frame["exact_match"], model["commonest"], model["blind"])
    for kind, values in want.items():
        row = re.search(rf"^\| {kind} \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
        assert row is not None, kind
        assert [float(cell) for cell in row.groups()] == [round(100 * value, 1) for value in values], kind


@pytest.mark.parametrize("encoder", ["gttm", "none"])
def test_the_scores_in_the_text_are_the_committed_ones(encoder: str) -> None:
    report = json.loads((ROOT / f"blip3v/models/tiny-{encoder}/evaluation.json").read_text("utf-8"))
    assert f"`{encoder}` ({100 * report['exact_match']:.1f} %)" in README


def test_the_speeds_in_the_readme_are_the_committed_ones() -> None:
    report = json.loads((ROOT / "benchmarks/results/bench-cpu.json").read_text("utf-8"))
    for row in report["rows"]:
        cells = [
            str(row["num_video_tokens"]),
            row["encoder"] + ("" if row["weights"] == "trained" else f" ({row['weights']})"),
        ]
        for part in ("whole_chain", "language_model"):
            speed, ratio = row[part]["samples_per_s"], row[part]["ratio"]
            cells += [f"{speed:.3g}", f"{1.0 if ratio is None else ratio:.2f}x"]
        assert f"| {' | '.join(cells)} |" in README


def _full_size() -> dict[str, Any]:
    report = json.loads((ROOT / "benchmarks/results/full-size-cpu.json").read_text("utf-8"))
    return {step["name"]: step for step in report["steps"]}


def test_the_costs_of_the_4b_model_are_the_measured_ones() -> None:
    steps = _full_size()
    for name, step in steps.items():
        peak = f"{step['peak_rss_bytes'] / 2**30:.1f} GiB" if "peak_rss_bytes" in step else "[^|]*"
        disk = f"{step['size_bytes'] / 1e9:.1f} GB" if "size_bytes" in step else "[^|]*"
        assert re.search(rf"^\| {name} \| {step['seconds']:.0f} s \| {peak} \| {disk} \|$", README, re.MULTILINE), name
    exports = [step for step in steps.values() if "parity" in step]
    worst = max(row["relative_error"] for step in exports for row in step["parity"]["comparisons"])
    assert f"worst relative error {worst:.1e}" in README
    assert all(step["peak_rss_bytes"] < 20 * 2**30 for step in steps.values() if "peak_rss_bytes" in step)
    assert all(step["parity"]["passed"] and step["parity"]["tokens"]["differing"] == 0 for step in exports)
    asked, opened = steps["ask"]["timings"], steps["bench"]["bench"]["rows"][0]["open_s"]
    video_s, prompt_s = asked["encode_s"], asked["prefill_s"]
    spent = f"{opened:.0f} s on opening, {video_s:.0f} s on the video, {prompt_s:.1f} s on the prompt"
    assert f"{spent} and {asked['per_token_s']:.2f} s on a token" in " ".join(README.split())


def test_the_speeds_of_the_4b_model_are_the_committed_ones() -> None:
    for row in _full_size()["bench"]["bench"]["rows"]:
        cells = [str(row["num_video_tokens"])]
        for part in ("whole_chain", "language_model"):
            cells += [f"{row[part]['samples_per_s']:.3g}", f"{row[part]['ratio']:.2f}x"]
        cells += [f"{row['stages']['prefill_s']['p50']:.1f} s", f"{row['tokens_per_s']:.2f}"]
        assert f"| {' | '.join(cells)} |" in README
