"""A process that holds one opened bundle, as ``blip3v.runtime`` opens it: the parent's side and the child's (``main``).

The child has no torch: its memory is the runtime's own, and an engine that crashes takes nothing else with it.
"""

# Shapes: T frames, M video tokens, D width, N positions, V logits.

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip3v.bench.child import ask, child_environment, end
from blip3v.bench.measure import Question, measure_sample
from blip3v.bench.sample import Sample, Shape
from blip3v.errors import BackendError, Blip3vError, ProviderError
from blip3v.python_arguments import code_arguments
from blip3v.runtime import GenerationOptions, VideoLimits, VideoLM
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.runtime.opening import open_model
from blip3v.runtime.request import Model, checked_prompt
from blip3v.video import SpareDecoder

__all__ = ["Job", "Outputs", "RuntimeWorker", "main"]

_COMMAND = (sys.executable, *code_arguments("from scripts.gpu.runtime_worker import main; main()"))
_ROOT = Path(__file__).resolve().parents[2]
_END_TIMEOUT_S = 20.0
_LIMIT_S = 240.0  # of one request; a cold 4B model opens in less


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker opens and asks."""

    bundle: str  # folder
    backend: str  # as ``VideoLM.open`` accepts it
    frames: str  # .npy file: uint8 (T, H, W, 3)
    question: str


class Outputs(NamedTuple):
    """What the two graphs return for the job's frames and question."""

    video_MD: NDArray[np.floating]
    logits_NV: NDArray[np.float32]  # after the prompt and after each token that was fed


class RuntimeWorker:
    """Holds a bundle open in another process; a context manager.

    Attributes:
        computed: what computes each graph, as an answer reports it.
        open_s: seconds that opening took, the start of the process not included.
        peak_rss_bytes: peak host memory of the process after the last request; None if it is not known.
    """

    def __init__(self, job: Job) -> None:
        """Starts the process and opens the bundle.

        Raises:
            ProviderError: the back end does not run it on this machine.
            BackendError: it cannot be opened. Both are in the words of the child.
        """
        self._job = job
        self._process = subprocess.Popen(
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=_environment()
        )
        try:
            opened = self._exchange(dataclasses.asdict(job))
        except BaseException:
            end(self._process, _END_TIMEOUT_S)
            raise
        self.computed: dict[str, Any] = opened["computed"]
        self.open_s: float = opened["open_s"]
        self.peak_rss_bytes: int | None = opened["peak_rss_bytes"]

    def __enter__(self) -> RuntimeWorker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._process, _END_TIMEOUT_S)

    @property
    def is_running(self) -> bool:
        """False after an error: whatever the child raised ended it."""
        return self._process.poll() is None

    def sample(self, num_video_tokens: int) -> Sample:
        """Answers once with that many video tokens: the encoder's own, repeated or cut.

        Raises:
            BackendError: whatever the child raised, or that it ended.
        """
        shape = {"num_video_tokens": num_video_tokens}
        return Sample.from_dict(self._exchange({"do": "sample", "shape": shape})["result"])

    def outputs(self, token_ids: list[int], file: Path) -> Outputs:
        """What the graphs return, with ``token_ids`` fed after the prompt one by one.

        Args:
            token_ids: N - 1 ids.
            file: .npz file that the child writes.

        Raises:
            BackendError: whatever the child raised, or that it ended.
        """
        self._exchange({"do": "outputs", "token_ids": token_ids, "file": str(file)})
        with np.load(file) as arrays:
            return Outputs(arrays["video_MD"], arrays["logits_NV"])

    def _exchange(self, values: dict[str, Any]) -> dict[str, Any]:
        limit = threading.Timer(_LIMIT_S, self._process.kill)
        limit.start()
        line = ask(self._process, json.dumps(values))
        limit.cancel()
        if line is None:
            raise BackendError(
                f"the process that ran {self._job.bundle} on {self._job.backend} ended with code "
                f"{self._process.wait()}; -11 is a crash of the engine, -9 a lack of host memory, or no answer within "
                f"{_LIMIT_S:g} s"
            )
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            end(self._process, _END_TIMEOUT_S)
            raise (ProviderError if answer["refused"] else BackendError)(answer["error"])
        self.peak_rss_bytes = answer["peak_rss_bytes"]
        return answer


def _environment() -> dict[str, str]:
    """In which the child finds this checkout, installed or not."""
    environment = child_environment()
    return environment | {"PYTHONPATH": os.pathsep.join((str(_ROOT), environment["PYTHONPATH"]))}


def main() -> None:
    """The child: a job comes in, what opened it goes out; then one result for each request, until the input ends.

    Everything is a line of JSON. An error is sent with its type and ends the process.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries that print must not come between the answers

    def write(values: dict[str, Any]) -> None:
        answers.write(json.dumps(values) + "\n")
        answers.flush()

    try:
        _serve(Job(**json.loads(sys.stdin.readline())), write)
    except Exception as error:  # whatever an engine raises is a result
        kind = "" if isinstance(error, Blip3vError) else f"{type(error).__name__}: "
        write({"error": kind + str(error), "refused": isinstance(error, ProviderError)})


def _serve(job: Job, write: Callable[[dict[str, Any]], None]) -> None:
    frames_THW3 = np.load(job.frames)
    started_s = time.perf_counter()
    model = open_model(
        job.bundle,
        backend=job.backend,
        device="auto",
        threads=None,
        max_context=None,
        max_cache_bytes=None,
        spare_decoder=SpareDecoder(),
        limits=VideoLimits(),
        allow_random=True,
        on_estimate=lambda needed: None,
    )
    open_s = time.perf_counter() - started_s
    with VideoLM(model) as lm:
        backend = lm.backend
        computed = {name: dataclasses.asdict(getattr(backend, name)) for name in ("video_encoder", "decoder")}
        write({"computed": computed, "open_s": open_s, "peak_rss_bytes": peak_rss_bytes()})
        for line in sys.stdin:
            request = json.loads(line)
            result = None
            if request["do"] == "sample":
                question, shape = Question(clip=frames_THW3, text=job.question), Shape(**request["shape"])
                result = dataclasses.asdict(measure_sample(lm, question, shape))
            else:
                found = _outputs(lm, model, frames_THW3, job.question, request["token_ids"])
                np.savez(request["file"], **found._asdict())
            write({"result": result, "peak_rss_bytes": peak_rss_bytes()})


def _outputs(lm: VideoLM, model: Model, frames_THW3: NDArray[np.uint8], question: str, token_ids: list[int]) -> Outputs:
    video = lm.encode(frames_THW3)
    options = GenerationOptions(max_new_tokens=max(1, len(token_ids)))
    request = model.first_request(video, checked_prompt(model, question, options), options)
    with closing(model.decoder.session(1, request.num_prompt_tokens + len(token_ids))) as session:
        logits_NV = [session.prefill([model.embed_prompt(request)], Deadline())[0]]
        logits_NV += [session.step(model.embed([token_id]))[0] for token_id in token_ids]
    return Outputs(video.tokens, np.stack(logits_NV))
