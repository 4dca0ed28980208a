"""One graph tuned: engines and their settings, two engines together, then threads, each beside the default.

Also whose results are allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blip3v.bundle.reader import Bundle
from blip3v.bundle.tuning import Candidate, Measured, TunedGraph
from blip3v.runtime import memory
from blip3v.runtime.backends import GraphName
from blip3v.runtime.memory import HOST
from blip3v.runtime.opening import graph_files, graph_hash
from blip3v.runtime.tuned import candidate_backend
from blip3v.tuning.accuracy import Budget, Verdict
from blip3v.tuning.candidates import default_candidate, pair_of, thread_counts, variants, with_threads
from blip3v.tuning.turns import Timed, measure
from blip3v.tuning.worker import GraphWorker, Job

__all__ = ["Asked", "Progress", "Tuner"]

_SHARES: dict[GraphName, float] = {"video_encoder": 0.4, "decoder": 0.6}  # of the time
_ENGINES_SHARE = 0.6  # of a graph's time; the rest is for a pair of engines and for threads
_PAIR_SHARE = 0.5  # of what is left then
_COMPARED_SHARE = 0.1  # of all time, for the results of a graph that others are compared with
_MAX_STEPS = 8  # of the decoder that a turn times; the answer's other steps take as long
_FIXED_BYTES = 384 * 2**20  # of a worker, besides weights
_FREE_SHARE = 0.8  # of the free memory, for workers
_DEFAULT_TOKENS = "video.npy"  # video tokens of the default video encoder
_NO_FASTER = "not compared: no faster"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the decoder is to be fast for, and how long that may take to find out."""

    question_tokens: int
    new_tokens: int
    prompt_tokens: int
    seconds: float

    def weigh(self, times: Mapping[str, float]) -> float:
        """Seconds of one request in a graph: a clip, or a prompt and the steps of its answer."""
        if "run" in times:
            return times["run"]
        return times["prefill"] + (self.new_tokens - 1) * times["step"]


class Tuner:
    """Tunes the graphs of a bundle one after another, the video encoder first: its tokens go into the decoder.

    Args:
        bundle: the bundle.
        budget: what results may lose.
        asked: what to be fast for.
        folder: of the inputs (``worker.PIXELS``, ``PROMPTS``), and for results.
        progress: told what is measured, and how many samples are taken.
    """

    def __init__(self, bundle: Bundle, budget: Budget, asked: Asked, folder: Path, progress: Progress) -> None:
        self._bundle = bundle
        self._budget = budget
        self._asked = asked
        self._folder = folder
        self._progress = progress
        self._spent = 0.0  # points of the budget that the choices so far take

    def tune(self, graph: GraphName) -> TunedGraph:
        """Finds the fastest candidate for a graph whose results are allowed.

        Raises:
            Blip3vError: the default does not run, or memory is short.
        """
        end_s = time.perf_counter() + self._asked.seconds * _SHARES[graph]
        results = _Results(self._budget, partial(self._save_results, graph), needs_default=graph == "video_encoder")
        candidates = variants(self._bundle, graph)
        timed = self._measure(
            graph, "engines", candidates, _ENGINES_SHARE * (end_s - time.perf_counter()), results.keep
        )
        pair = pair_of(self._bundle, timed) if graph == "decoder" else None
        if pair is not None:
            seconds = _PAIR_SHARE * (end_s - time.perf_counter())
            timed += self._measure(graph, "two engines", [candidates[0], pair], seconds, results.keep)[1:]
        verdicts = self._judge(graph, timed, results)
        best = _best(timed, verdicts)
        counted = with_threads(best.candidate, thread_counts())
        left_s = end_s - time.perf_counter()
        if counted and left_s > 0:
            again = [candidates[0], *[one for one in (best.candidate, *counted) if one != candidates[0]]]
            later = self._measure(graph, "threads", again, left_s)
            verdicts |= {str(one): verdicts[str(best.candidate)] for one in counted}
            timed = [*[one for one in timed if one.candidate not in again], *later]
            best = _best(later, verdicts)
        self._spent += verdicts[str(best.candidate)].points
        return TunedGraph(
            graph_sha256=graph_hash(self._bundle, graph),
            chosen=best.candidate,
            engine_version=best.version,
            speedup=1.0 if best.candidate == candidates[0] else best.speedup or 1.0,
            default=candidates[0],
            measured=tuple(_measured(one, verdicts.get(str(one.candidate))) for one in timed),
        )

    def _measure(
        self,
        graph: GraphName,
        what: str,
        candidates: Sequence[Candidate],
        seconds: float,
        after: Callable[[Sequence[tuple[Timed, GraphWorker]]], None] = lambda group: None,
    ) -> list[Timed]:
        return measure(
            candidates,
            partial(self._open, graph),
            weigh=self._asked.weigh,
            at_once=self._at_once(graph, candidates),
            seconds=seconds,
            after=after,
            progress=lambda done, total: self._progress(f"{graph.replace('_', ' ')}, {what}", done, total),
        )

    def _open(self, graph: GraphName, candidate: Candidate) -> GraphWorker:
        job = Job(
            bundle=str(self._bundle.path),
            graph=graph,
            candidate=candidate,
            folder=str(self._folder),
            prompt_tokens=self._asked.prompt_tokens,
            num_steps=min(self._asked.new_tokens - 1, _MAX_STEPS),
        )
        return GraphWorker(job)

    def _at_once(self, graph: GraphName, candidates: Sequence[Candidate]) -> int:
        """How many candidates may be open at a time.

        Raises:
            OutOfMemoryError: not even two.
        """
        file = graph_files(self._bundle)[graph]
        found = [candidate_backend(one, graph, self._bundle).footprint(file) for one in candidates]
        needs = [each.host_bytes + (each.weights_bytes if each.memory is HOST else 0) for each in found]
        need = max(needs) + _FIXED_BYTES
        memory.require(2 * need, f"tuning the {graph} of {self._bundle.path}", "close other programs")
        if any(each.memory is not HOST for each in found):
            return 2  # the device's memory holds fewer than the machine's
        free = memory.available_bytes()
        return len(candidates) if free is None else max(2, int(_FREE_SHARE * free / need))

    def _save_results(self, graph: GraphName, worker: GraphWorker, name: str, like: str | None) -> None:
        """Has a worker save the results that it is judged by, and the default's (``like`` is None) for the decoder."""
        limit_s = None if like else self._asked.seconds * _COMPARED_SHARE
        if graph == "video_encoder":
            worker.encode(f"{name}.npy" if like else _DEFAULT_TOKENS, like=like and _DEFAULT_TOKENS, limit_s=limit_s)
            return
        worker.answer(name, _DEFAULT_TOKENS, like=like, limit_s=limit_s)

    def _judge(self, graph: GraphName, timed: Sequence[Timed], results: _Results) -> dict[str, Verdict]:
        """The verdicts on the candidates, by their text, as far as they are known or were compared."""
        verdicts = {}
        for one in timed:
            known = self._budget.known(one.candidate, timed[0].candidate)
            if known is not None:
                verdicts[str(one.candidate)] = known
        names = results.names
        if graph == "video_encoder" and self._budget.compares_tokens and results.wanted:
            names = self._answers_to(names)
        elif graph == "video_encoder":
            names = {key: f"{name}.npy" for key, name in names.items()} | {str(timed[0].candidate): _DEFAULT_TOKENS}
        else:
            names = {key: f"{name}.npy" for key, name in names.items()}
        for key, base in results.wanted.items():
            ours, theirs = (np.load(self._folder / names[which]) for which in (key, base))
            candidate = next(one.candidate for one in timed if str(one.candidate) == key)
            verdicts[key] = self._budget.judge(graph, candidate, ours, theirs, self._spent)
        return verdicts

    def _answers_to(self, names: Mapping[str, str]) -> dict[str, str]:
        """Logits of the default decoder on the video tokens of each candidate; files by the candidates' texts."""
        self._progress("video encoder, answers", 0, 0)
        found = {}
        with self._open("decoder", default_candidate(self._bundle, "decoder")) as worker:
            limit_s = self._asked.seconds * _COMPARED_SHARE
            for number, (key, name) in enumerate(names.items()):
                video, save = (f"{name}.npy" if number else _DEFAULT_TOKENS), f"answers-{name}"
                worker.answer(save, video, like="answers-0" if number else None, limit_s=None if number else limit_s)
                found[key] = f"{save}.npy"
        return found


class _Results:
    """Which candidates' results are needed, and where they were saved: the default's first, as ``0``."""

    def __init__(
        self, budget: Budget, save: Callable[[GraphWorker, str, str | None], None], *, needs_default: bool
    ) -> None:
        self._budget = budget
        self._save = save
        self._needs_default = needs_default  # whether the default's are used by others too
        self.names: dict[str, str] = {}  # text of a candidate -> name of its results
        self.wanted: dict[str, str] = {}  # text of a candidate to be judged -> of the one that it is compared with

    def keep(self, group: Sequence[tuple[Timed, GraphWorker]]) -> None:
        """Saves the results of candidates that are faster and not known, and of those that they are compared with."""
        default = group[0][0].candidate
        present = {str(timed.candidate) for timed, _ in group}
        for timed, _ in group[1:]:
            if timed.is_faster and self._budget.known(timed.candidate, default) is None:
                own = Candidate(backend=timed.candidate.backend)
                # What the report says of the engine holds for its own settings.
                is_reported = self._budget.reported(own.backend) is not None and str(own) in present
                self.wanted[str(timed.candidate)] = str(own if is_reported else default)
        if not self.wanted and not self._needs_default:
            return
        needed = {str(default), *self.wanted, *self.wanted.values()}
        for timed, worker in group:
            key = str(timed.candidate)
            if key in needed and key not in self.names:
                name = str(len(self.names))
                self._save(worker, name, "0" if self.names else None)
                self.names[key] = name


def _best(timed: Sequence[Timed], verdicts: Mapping[str, Verdict]) -> Timed:
    """The fastest of those that are allowed; the default, which comes first, unless another is clearly faster."""
    able = [one for one in timed[1:] if one.is_faster and str(one.candidate) in verdicts]
    able = [one for one in able if verdicts[str(one.candidate)].allowed]
    return max(able, key=lambda one: one.speedup or 0.0, default=timed[0])


def _measured(timed: Timed, verdict: Verdict | None) -> Measured:
    return Measured(
        candidate=timed.candidate,
        median_s=timed.median_s,
        speedup=timed.speedup,
        num_turns=len(timed.turns),
        accuracy=timed.why_not or (_NO_FASTER if verdict is None else verdict.text),
        allowed=None if verdict is None else verdict.allowed,
        times_s=timed.medians_s,
    )
