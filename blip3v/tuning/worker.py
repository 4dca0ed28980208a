"""A process that holds one graph as one candidate runs it, and times it: the parent's side and the child's.

Arrays go through files in a temporary folder of the parent's. Letters: B clips, M video tokens, D width, n new
tokens, V logits.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bench.child import Child, serve
from blip3v.bundle.hub_links import real_files
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.tuning import Candidate
from blip3v.python_arguments import code_arguments
from blip3v.runtime.backends import GRAPHS, Decoder, GraphName, VideoEncoder
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.opening import graph_files
from blip3v.runtime.tuned import candidate_backend
from blip3v.text.prompt import splice

__all__ = ["PIXELS", "PROMPTS", "GraphWorker", "Job", "main"]

_COMMAND = (sys.executable, *code_arguments("from blip3v.tuning.worker import main; main()"))
# Files in the folder of a job.
PIXELS = "pixels.npy"  # (N,F,3,S,S)
PROMPTS = "prompts.json"  # [{clip, ids, image_position}]
_MAX_ANSWER = 16  # tokens of an answer that are compared
_TABLE_SEED = 0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker holds and times."""

    bundle: str  # folder
    graph: GraphName
    candidate: Candidate
    folder: str  # of the inputs, and of what is saved
    prompt_tokens: int  # of the prefill that is timed
    num_steps: int  # that are timed

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Job:
        """The job that ``dataclasses.asdict`` gave, after it went through JSON."""
        return cls(**{**values, "candidate": Candidate(**values["candidate"])})


class GraphWorker(Child):
    """Holds one graph open in another process; a context manager.

    Attributes:
        version: of the engine.
    """

    def __init__(self, job: Job) -> None:
        """Starts the process and opens the graph.

        Raises:
            Blip3vError: whatever opening raised in the child.
        """
        super().__init__(_COMMAND, f"measured the {job.graph} of {job.bundle} with {job.candidate}")
        try:
            self.version: str = self.exchange(dataclasses.asdict(job))["version"] or ""
        except BaseException:
            self.close()
            raise

    def sample(self) -> dict[str, float]:
        """Seconds of one turn: ``run`` of a video encoder; ``prefill`` and ``step``, the mean of several, of a decoder.

        Raises:
            Blip3vError: whatever running raised in the child.
        """
        seconds: dict[str, float] = self.exchange({"do": "time"})["seconds"]
        return seconds

    def encode(self, name: str, *, like: str | None = None, limit_s: float | None = None) -> None:
        """Has the video tokens (N,M,D) of the first clips saved.

        Args:
            name: of the file.
            like: file of an earlier call, for as many clips; None: all of them.
            limit_s: seconds after which no further clip is begun; None: no limit.
        """
        self.exchange({"do": "encode", "save": name, "like": like, "limit_s": limit_s})

    def answer(self, name: str, video: str, *, like: str | None = None, limit_s: float | None = None) -> None:
        """Has answers to the prompts saved: the logits that chose each token, ``NAME.npy``, and the tokens.

        Args:
            name: of the files.
            video: file of the video tokens, of ``encode``; prompts about other clips are left out.
            like: of earlier answers, whose tokens are fed instead of its own; None: greedy ones.
            limit_s: seconds after which no further prompt is begun; None: all of them.
        """
        self.exchange({"do": "answer", "save": name, "video": video, "like": like, "limit_s": limit_s})


def main() -> None:
    """The child process; see ``GraphWorker``."""
    serve(_opened)


@contextmanager
def _opened(values: Mapping[str, Any]) -> Iterator[Callable[[Mapping[str, Any] | None], dict[str, Any]]]:
    job = Job.from_dict(values)
    bundle = open_bundle(Path(job.bundle))
    backend = candidate_backend(job.candidate, job.graph, bundle)
    threads = job.candidate.threads
    subject: _EncoderRuns | _DecoderRuns
    with real_files(bundle.path, [file for name in GRAPHS for file in bundle.graph_files(name)]) as folder:
        graph = graph_files(bundle, folder)[job.graph]
        if job.graph == "video_encoder":
            subject = _EncoderRuns(job, backend.open_video_encoder(graph, threads=threads))
        else:
            subject = _DecoderRuns(job, bundle, backend.open_decoder(graph, bundle.config.text, threads=threads))

    def answer(question: Mapping[str, Any] | None) -> dict[str, Any]:
        if question is None:
            return {"version": subject.opened.execution.version}
        return subject.answer(question)

    with closing(subject.opened):
        yield answer


class _EncoderRuns:
    def __init__(self, job: Job, opened: VideoEncoder) -> None:
        self.opened = opened
        self._folder = Path(job.folder)
        self._pixels_NF3SS = np.load(self._folder / PIXELS, mmap_mode="r")

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if question["do"] == "time":
            return {"seconds": self._timed()}
        self._encode(question["save"], question["like"], question["limit_s"])
        return {}

    def _encode(self, save: str, like: str | None, limit_s: float | None) -> None:
        num_clips = len(self._pixels_NF3SS if like is None else np.load(self._folder / like, mmap_mode="r"))
        start_s = time.perf_counter()
        tokens: list[NDArray[Any]] = []
        for index in range(num_clips):
            if tokens and limit_s is not None and time.perf_counter() - start_s > limit_s:
                break
            tokens.append(self._run(index))
        np.save(self._folder / save, np.concatenate(tokens))

    def _timed(self) -> dict[str, float]:
        start_s = time.perf_counter()
        self._run(0)
        return {"run": time.perf_counter() - start_s}

    def _run(self, index: int) -> NDArray[Any]:
        """Video tokens (1,M,D) of a clip."""
        pixels_1F3SS = np.ascontiguousarray(self._pixels_NF3SS[index : index + 1])
        return np.asarray(self.opened.run(pixels_1F3SS, Deadline())["video_tokens"])


class _DecoderRuns:
    def __init__(self, job: Job, bundle: Bundle, opened: Decoder) -> None:
        self.opened = opened
        self._folder = Path(job.folder)
        self._prompt_tokens, self._num_steps = job.prompt_tokens, job.num_steps
        self._end_id = bundle.tokenizer.end_id
        self._table_VD = bundle.embeddings()
        random = np.random.default_rng(_TABLE_SEED)
        self._random_TD = self._embed(random.integers(0, len(self._table_VD), job.prompt_tokens + job.num_steps))

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        if question["do"] == "time":
            return {"seconds": self._timed()}
        self._answers(question["save"], question["video"], question["like"], question["limit_s"])
        return {}

    def _embed(self, ids: Any) -> NDArray[Any]:
        return np.asarray(self._table_VD[ids]).astype(self.opened.dtype, copy=False)

    def _timed(self) -> dict[str, float]:
        with closing(self.opened.session(1, len(self._random_TD))) as session:
            start_s = time.perf_counter()
            session.prefill([self._random_TD[: self._prompt_tokens]], Deadline())
            prefill_s = time.perf_counter() - start_s
            start_s = time.perf_counter()
            for row_D in self._random_TD[self._prompt_tokens :]:
                session.step(row_D[None])
            step_s = (time.perf_counter() - start_s) / self._num_steps
        return {"prefill": prefill_s, "step": step_s}

    def _answers(self, save: str, video: str, like: str | None, limit_s: float | None) -> None:
        video_NMD = np.load(self._folder / video, mmap_mode="r")
        everyone = json.loads((self._folder / PROMPTS).read_text("utf-8"))
        prompts = [prompt for prompt in everyone if prompt["clip"] < len(video_NMD)]
        known = None if like is None else json.loads((self._folder / f"{like}.json").read_text("utf-8"))
        start_s = time.perf_counter()
        answers: list[list[int]] = []
        logits: list[NDArray[np.float32]] = []
        for index, prompt in enumerate(prompts[: None if known is None else len(known)]):
            if answers and limit_s is not None and time.perf_counter() - start_s > limit_s:
                break
            embeds_LD = splice(self._embed(prompt["ids"]), prompt["image_position"], video_NMD[prompt["clip"]])
            ids, logits_nV = self._answer(embeds_LD, None if known is None else known[index])
            answers.append(ids)
            logits.append(logits_nV)
        np.save(self._folder / f"{save}.npy", np.concatenate(logits))
        (self._folder / f"{save}.json").write_text(json.dumps(answers), "utf-8")

    def _answer(self, embeds_LD: NDArray[Any], known: list[int] | None) -> tuple[list[int], NDArray[np.float32]]:
        """The tokens, ``known`` or its own, and the logits (n,V) that chose, or would have chosen, each of them."""
        ids: list[int] = []
        logits = []
        with closing(self.opened.session(1, len(embeds_LD) + _MAX_ANSWER)) as session:
            logits_V = session.prefill([embeds_LD], Deadline())[0]
            while True:
                logits.append(logits_V.copy())
                ids.append(int(logits_V.argmax()) if known is None else known[len(ids)])
                is_last = ids[-1] == self._end_id or len(ids) == _MAX_ANSWER
                if is_last if known is None else len(ids) == len(known):
                    return ids, np.stack(logits)
                logits_V = session.step(self._embed(ids[-1:]))[0]
