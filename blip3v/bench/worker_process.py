"""Holds one bundle open and takes a sample of it for each line of input; started by ``worker.Worker``.

One JSON value a line: the job in, ``ready`` out; then a number of video tokens in (null: the bundle's own), a sample
out, until the input ends. An error of blip3v goes out by its name and ends the process.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

from blip3v.bench.measure import measure_sample
from blip3v.bench.worker import Job
from blip3v.errors import Blip3vError
from blip3v.runtime import VideoLM
from blip3v.runtime.memory import peak_rss_bytes


def main() -> None:
    """Runs until the input ends."""
    job = Job(**json.loads(sys.stdin.readline()))
    try:
        with VideoLM.open(job.bundle, threads=job.threads, allow_random=True) as lm:
            _say({"ready": True})
            for line in sys.stdin:
                _say(_sample(lm, job, json.loads(line)))
    except Blip3vError as error:
        _say({"error": type(error).__name__, "message": error.message, "remedy": error.remedy})


def _sample(lm: VideoLM, job: Job, num_video_tokens: int | None) -> dict[str, Any]:
    sample = measure_sample(lm, Path(job.clip), job.question, num_video_tokens)
    return {"sample": dataclasses.asdict(sample), "peak_rss_bytes": peak_rss_bytes()}


def _say(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
