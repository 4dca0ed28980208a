"""Steps of a long measurement, each in a process of its own and in the JSON as soon as it is done."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from blip3v.bench.environment import describe_environment, load_average
from blip3v.publishing import write_file

__all__ = ["ROOT", "Report", "run_command"]

ROOT = Path(__file__).resolve().parents[1]


class Report:
    """The JSON, written after each step. Paths in it begin with FOLDER.

    Args:
        folder: where the steps write.
        output: the JSON; steps that are in it are not run again.
        head: what it says besides.
    """

    def __init__(self, folder: Path, output: Path, head: Mapping[str, Any]) -> None:
        self.folder = folder
        self._output = output
        folder.mkdir(parents=True, exist_ok=True)
        self._values = json.loads(output.read_text("utf-8")) if output.is_file() else {"steps": []}
        self._values |= {"schema_version": 1, **head, "environment": describe_environment()}

    def step(self, name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Runs a step unless it is there, and returns its entry."""
        found = next((step for step in self._values["steps"] if step["name"] == name), None)
        if found is None:
            print(name, file=sys.stderr)
            before, started_s = load_average(), time.perf_counter()
            found = {"name": name, **run(), "step_s": round(time.perf_counter() - started_s, 1)}
            found["load_average"] = {"before": before, "after": load_average()}
            self._values["steps"].append(found)
            self._output.parent.mkdir(parents=True, exist_ok=True)
            write_file(self._output, json.dumps(self._values, indent=1, ensure_ascii=False) + "\n")
        return dict(found)

    def command(self, name: str, words: Sequence[str], output: Path, keys: Sequence[str]) -> dict[str, Any]:
        """A step that is a command of ours; one that made ``output`` but not its entry is run again."""

        def run() -> dict[str, Any]:
            full = ["blip3v", *words, "-o", str(output), "--force"]
            ran = run_command([sys.executable, "-m", *full, "--quiet", "--json"])
            values = json.loads(ran)
            return {"command": self.shown(full), **{key: values.get(key) for key in keys}}

        return self.step(name, run)

    def shown(self, words: Sequence[str]) -> str:
        """A command as it is in the JSON."""
        return shlex.join(words).replace(str(self.folder), "FOLDER")


def run_command(command: Sequence[str]) -> str:
    """Returns what a command printed; ends this process with its last words if it fails."""
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"ended with code {ran.returncode} (-9: killed, out of memory)"]
        raise SystemExit(f"{shlex.join(command[1:])}: {lines[-1]}")
    return ran.stdout
