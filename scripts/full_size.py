"""Exports and runs the 4B model on this machine, and records seconds, peak memory, disk and parity of each command.

    python scripts/full_size.py /tmp/full-size benchmarks/results/full-size-cpu.json

Needs 24 GiB of memory, 54 GB of disk in the first folder and about an hour on two idle cores. Each command runs as a
user would type it, in its own process; a command that fails ends the script. All outputs are kept except the synthetic
checkpoint, and a step that is already in the JSON is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from blip3v.bench.environment import describe_environment, load_average
from blip3v.publishing import write_file

ROOT = Path(__file__).resolve().parents[1]
CLIP = "examples/turn.mp4"
QUESTION = "Which way does the red circle turn?"
COUNTS = (1024, 128, 32, 16)

Step = tuple[str, list[str], Callable[[dict[str, Any]], dict[str, Any]]]


def main() -> None:
    """Runs the steps in order and writes the JSON after each one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where checkpoint, model folder and bundles go")
    parser.add_argument("output", type=Path, help="the JSON")
    parser.add_argument("-r", "--repetitions", type=int, default=3, help="of the benchmark (default: 3)")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    report = json.loads(options.output.read_text("utf-8")) if options.output.is_file() else {"steps": []}
    report["environment"] = describe_environment()
    for name, command, pick in _steps(options.repetitions):
        if any(step["name"] == name for step in report["steps"]):
            continue
        report["steps"].append(_run(name, command, pick, options.folder))
        options.output.parent.mkdir(parents=True, exist_ok=True)
        write_file(options.output, json.dumps(report, indent=2, ensure_ascii=False) + "\n")
        if name == "convert":
            shutil.rmtree(options.folder / "released")  # frees disk space for the bundle
    print(options.output)


def _steps(repetitions: int) -> list[Step]:
    counts = [word for count in COUNTS for word in ("--tokens", str(count))]
    export = ["blip3v", "export", "--json", "--precision"]
    random = ["--preset", "xgen-mm-vid", "--init", "random", "--encoder", "gttm"]
    ask = ["blip3v", "ask", CLIP, QUESTION, "--allow-random", "--max-new-tokens", "32", "--json"]
    return [
        ("export random weights", [*export, "fp16", *random, "-o", "{folder}/random-fp16"], _exported),
        ("ask", [*ask, "-m", "{folder}/random-fp16"], _answered),
        (
            "bench",
            [
                *("blip3v", "bench", "{folder}/random-fp16", *counts, "--clip", CLIP),
                *("-w", "1", "-r", str(repetitions), "--json"),
            ],
            _measured,
        ),
        ("write a synthetic checkpoint", ["python", "scripts/synthetic_checkpoint.py", "{folder}/released"], _nothing),
        ("convert", ["blip3v", "convert", "{folder}/released", "-o", "{folder}/converted", "--json"], _converted),
        (
            "export the converted checkpoint",
            [*export, "fp16", "-m", "{folder}/converted", "-o", "{folder}/converted-fp16"],
            _exported,
        ),
        ("export random weights in fp32", [*export, "fp32", *random, "-o", "{folder}/random-fp32"], _exported),
        ("ask in fp32", [*ask, "-m", "{folder}/random-fp32"], _answered),
    ]


def _run(
    name: str, command: list[str], pick: Callable[[dict[str, Any]], dict[str, Any]], folder: Path
) -> dict[str, Any]:
    shown = shlex.join(word.format(folder="FOLDER") for word in command)
    print(shown, file=sys.stderr)
    before, started = load_average(), time.perf_counter()
    words = [word.format(folder=folder) for word in command]
    ran = subprocess.run(words, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=_environment())
    if ran.returncode:
        raise SystemExit(f"{shown} ended with code {ran.returncode}")
    seconds = time.perf_counter() - started
    result = pick(json.loads(ran.stdout)) if "--json" in command else {}
    load = {"before": before, "after": load_average()}
    return {"name": name, "command": shown, "seconds": round(seconds, 1), "load_average": load, **result}


def _environment() -> dict[str, str]:
    """Puts the commands of the environment that runs this script first."""
    return os.environ | {"PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))}


def _nothing(values: dict[str, Any]) -> dict[str, Any]:
    return {}


def _exported(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("size_bytes", "peak_rss_bytes", "parity")}


def _answered(values: dict[str, Any]) -> dict[str, Any]:
    return {name: values[name] for name in ("usage", "timings", "backend", "peak_rss_bytes")}


def _measured(values: dict[str, Any]) -> dict[str, Any]:
    return {"bench": values}


def _converted(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ("source", "output", "next")}


if __name__ == "__main__":
    main()
