"""A process that holds one bundle and measures it: the parent's side (``Worker``) and the child's (``main``)."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v.bench.child import Child, serve
from blip3v.bench.measure import NEW_TOKENS, Question, measure_sample
from blip3v.bench.sample import Sample, Shape
from blip3v.python_arguments import code_arguments
from blip3v.runtime import BackendReport, Execution, VideoLM
from blip3v.runtime.memory import peak_rss_bytes

__all__ = ["Job", "Worker", "main"]

_COMMAND = (sys.executable, *code_arguments("from blip3v.bench.worker import main; main()"))
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


class Worker(Child):
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
        self.peak_rss_bytes: int | None = None
        start_s = time.perf_counter()
        super().__init__(_COMMAND, f"measured {job.bundle}")
        try:
            self.backend = _backend(self.exchange(dataclasses.asdict(job))["backend"])
        except BaseException:
            self.close()
            raise
        self.open_s = time.perf_counter() - start_s

    def sample(self, shape: Shape = _ONE) -> Sample:
        """Takes one turn.

        Raises:
            Blip3vError: whatever answering raised in the child.
        """
        answer = self.exchange(dataclasses.asdict(shape))
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        return Sample.from_dict(answer["sample"])


def _backend(values: dict[str, Any]) -> BackendReport:
    graphs = {graph: Execution(**values[graph]) for graph in ("video_encoder", "decoder")}
    return BackendReport(stored=values["stored"], tuning=values["tuning"], **graphs)


def main() -> None:
    """The child process: holds one bundle open and takes a sample of it for each line of input, until the input ends.

    One JSON value per line: the job in, the back end's report out; then a shape in, a sample out.
    """
    serve(_opened)


@contextmanager
def _opened(values: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any] | None], dict[str, Any]]]:
    job = Job(**values)
    with VideoLM.open(job.bundle, backend=job.backend, threads=job.threads, allow_random=True) as lm:

        def answer(shape: Mapping[str, Any] | None) -> dict[str, Any]:
            return {"backend": dataclasses.asdict(lm.backend)} if shape is None else _sample(lm, job, Shape(**shape))

        yield answer


def _sample(lm: VideoLM, job: Job, shape: Shape) -> dict[str, Any]:
    question = Question(clip=Path(job.clip), text=job.question, num_new_tokens=job.num_new_tokens)
    sample = measure_sample(lm, question, shape)
    return {"sample": dataclasses.asdict(sample), "peak_rss_bytes": peak_rss_bytes()}
