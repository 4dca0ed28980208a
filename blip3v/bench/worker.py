"""A process that holds one bundle and measures it: the parent's side (``Worker``) and the child's (``main``)."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from blip3v import errors
from blip3v.bench.child import ask, child_environment, end
from blip3v.bench.measure import NEW_TOKENS, Question, measure_sample
from blip3v.bench.sample import Sample, Shape
from blip3v.python_arguments import code_arguments
from blip3v.runtime import BackendReport, Execution, VideoLM
from blip3v.runtime.memory import peak_rss_bytes

__all__ = ["Job", "Worker", "main"]

_COMMAND = (sys.executable, *code_arguments("from blip3v.bench.worker import main; main()"))
_END_TIMEOUT_S = 10.0
_ONE = Shape()


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker measures."""

    bundle: str  # folder
    clip: str  # file
    question: str
    threads: int | None  # per operator; None: one per physical core
    backend: str  # as ``VideoLM.open`` accepts it
    num_new_tokens: int = NEW_TOKENS  # of every answer


class Worker:
    """Holds one bundle open in another process and takes samples of it on request; a context manager.

    Attributes:
        backend: the engines that compute the bundle.
        open_s: seconds that opening the bundle took, including the start of the process.
        peak_rss_bytes: peak resident memory of the process after the last sample; None if it is not known.
    """

    def __init__(self, job: Job) -> None:
        """Starts the process and opens the bundle.

        Raises:
            Blip3vError: whatever opening the bundle raised in the child.
        """
        self._bundle = job.bundle
        self.peak_rss_bytes: int | None = None
        start_s = time.perf_counter()
        self._process = subprocess.Popen(
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for the parent, which then ends this process
        )
        try:
            self.backend = _backend(self._exchange(json.dumps(dataclasses.asdict(job)))["backend"])
        except BaseException:
            end(self._process, _END_TIMEOUT_S)
            raise
        self.open_s = time.perf_counter() - start_s

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._process, _END_TIMEOUT_S)

    def sample(self, shape: Shape = _ONE) -> Sample:
        """Takes one turn.

        Raises:
            Blip3vError: whatever answering raised in the child.
        """
        answer = self._exchange(json.dumps(dataclasses.asdict(shape)))
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        return Sample.from_dict(answer["sample"])

    def _exchange(self, line: str) -> dict[str, Any]:
        answer = ask(self._process, line)
        if answer is None:
            raise errors.BackendError(
                f"the process that measured {self._bundle} ended with code {self._process.wait()} in the middle of a "
                "sample; code -9 usually means that memory ran out: measure fewer bundles at once"
            )
        values: dict[str, Any] = json.loads(answer)
        if "error" in values:
            raise _raised_error(values["error"], values["message"], values["remedy"])
        return values


def _backend(values: dict[str, Any]) -> BackendReport:
    graphs = {graph: Execution(**values[graph]) for graph in ("video_encoder", "decoder")}
    return BackendReport(stored=values["stored"], tuning=values["tuning"], **graphs)


def _raised_error(name: str, message: str, remedy: str) -> errors.Blip3vError:
    kind: type[errors.Blip3vError] = getattr(errors, name)
    return kind(message, remedy=remedy)


def main() -> None:
    """The child process: holds one bundle open and takes a sample of it for each line of input, until the input ends.

    One JSON value per line: the job in, the back end's report out; then a shape in, a sample out. A blip3v error is
    sent by name and ends the process.
    """
    job = Job(**json.loads(sys.stdin.readline()))
    try:
        with VideoLM.open(job.bundle, backend=job.backend, threads=job.threads, allow_random=True) as lm:
            _write({"backend": dataclasses.asdict(lm.backend)})
            for line in sys.stdin:
                _write(_sample(lm, job, Shape(**json.loads(line))))
    except errors.Blip3vError as error:
        _write({"error": type(error).__name__, "message": error.message, "remedy": error.remedy})


def _sample(lm: VideoLM, job: Job, shape: Shape) -> dict[str, Any]:
    question = Question(clip=Path(job.clip), text=job.question, num_new_tokens=job.num_new_tokens)
    sample = measure_sample(lm, question, shape)
    return {"sample": dataclasses.asdict(sample), "peak_rss_bytes": peak_rss_bytes()}


def _write(values: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()
