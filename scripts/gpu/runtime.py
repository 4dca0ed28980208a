"""Stage ``runtime``: bundles in every precision and target, on every back end that is installed.

Each bundle is opened in a process of its own, as a user opens it, and asked about frames in memory. What it returns is
compared with the fp32 PyTorch reference; then its samples are taken in turns with those of the first case that runs,
at each number of video tokens. A case that the libraries refuse has their words.
"""

from __future__ import annotations

import gc
import re
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from blip3v.bench.measure import NEW_TOKENS
from blip3v.bench.sample import Sample
from blip3v.bench.training.rows import BASELINE
from blip3v.bundle.precision import Precision
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import is_tensorrt
from blip3v.errors import ProviderError
from scripts.gpu.plan import QUESTION_TOKENS, Budget, Plan, first_line
from scripts.gpu.report import Report
from scripts.gpu.runtime_bundles import Bundles
from scripts.gpu.runtime_cases import Case, cases, refusal
from scripts.gpu.runtime_engines import build
from scripts.gpu.runtime_reference import Reference, compare, reference_of
from scripts.gpu.runtime_worker import Job, RuntimeWorker

__all__ = ["runtime", "speeds"]

STAGE = "runtime"
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[\w.@+-]+/)+")
_WHAT = {
    "weights": "random, the same for every case and for the reference",
    "text": f"{QUESTION_TOKENS} question tokens and the chat template's, {NEW_TOKENS} answer tokens, no stop token",
    "video_tokens": "the encoder's own, repeated or cut: the language model's time depends on their number alone",
    "samples_per_s": "frames in memory preprocessed, encoded and answered, one at a time",
    "first_token_ms": "all of that up to the first new token",
    "turns": "one sample of each case and number of video tokens in turn; a ratio is the median over the turns",
    "times_base": "beside the first case that ran",
    "device_bytes": "what the device holds after an answer about the most video tokens, less what it held before",
    "parity": "video tokens, and logits after the prompt and after each token of the reference's answer",
}

Turns = dict[tuple[str, int], list[Sample]]  # by case and number of video tokens


def runtime(plan: Plan, report: Report) -> None:
    """Measures every case that is not in the report yet."""
    if plan.device.type == "cuda":  # what the stages before have left
        gc.collect()
        torch.cuda.empty_cache()
    report.describe(STAGE, "what", _WHAT)
    with ExitStack() as stack:
        bench, budget = _Bench(plan, stack), Budget(plan.seconds)
        # Those that failed before come last: one that brings the check down must not keep it from the others.
        wanted = sorted(cases(plan), key=lambda case: "failed" in report.rows(STAGE).get(str(case), {}))
        for place, case in enumerate(wanted):
            if not report.holds(STAGE, str(case)):
                _measure(case, bench, budget, report)
            if report.holds(STAGE, str(case)):
                bench.base = bench.base or case
            if not report.rows(STAGE)[str(case)].keys() & {"failed", "skipped"}:  # those are tried again
                bench.forget(case, wanted[place + 1 :])


def _measure(case: Case, bench: _Bench, budget: Budget, report: Report) -> None:
    """Puts a case into the report: measured, refused, failed or skipped."""
    why = refusal(case)
    if why is not None:
        report.put(STAGE, str(case), {"refused": _portable(why)})
    elif budget.spent:
        report.skip(STAGE, str(case), f"the {budget.seconds:g} s of this stage were spent")
    else:
        report.put(STAGE, str(case), {"failed": "the check ended while it was measured", "passed": False})
        try:
            row = bench.measure(case, budget)
        except ProviderError as error:  # known only once there is a graph or an engine
            row = {"refused": _portable(str(error))}
        except Exception as error:  # whatever an engine or an export raises is a result, and fails the command
            row = {"failed": _portable(first_line(error)), "passed": False}
        report.put(STAGE, str(case), row)


def _portable(text: str) -> str:
    """A message without the folders of this machine: of a path the last name is left."""
    return _FOLDERS.sub("", text.replace(sys.executable, "python"))


class _Bench:
    """What the cases share: the bundles, the reference, and the base that they are compared with in speed.

    Attributes:
        base: the first case that ran; None: none has yet.
    """

    def __init__(self, plan: Plan, stack: ExitStack) -> None:
        self.base: Case | None = None
        self._base_worker: RuntimeWorker | None = None
        self._plan = plan
        self._stack = stack
        self._bundles = Bundles(plan)
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="blip3v-gpu-check-")))

    def measure(self, case: Case, budget: Budget) -> dict[str, Any]:
        """Everything about one case.

        Raises:
            ProviderError: the library refuses it, now that there is a graph or an engine.
            Exception: whatever else an export or an engine raises.
        """
        bundle, facts = self._bundles.get(case)
        reference = self._reference
        engines = build(bundle) if is_tensorrt(case.target) else None
        base = self._opened_base()
        counts = [row.num_video_tokens for row in self._plan.rows]
        before_bytes = self._device_bytes()
        with ExitStack() as own:
            worker = own.enter_context(RuntimeWorker(self._job(bundle, case)))
            got = worker.outputs(reference.token_ids, self._folder / "outputs.npz")
            first_s = worker.sample(max(counts)).whole_chain_s
            after_bytes = self._device_bytes()
            workers = {"case": worker} | ({} if base is None else {"base": base})
            samples = self._take_turns(workers, counts, budget)
            if base is None:
                self.base, self._base_worker = case, worker
                self._stack.enter_context(own.pop_all())
        return {
            **case._asdict(),
            **compare(got, reference, for_target(Precision.parse(case.precision), case.target)),
            "computed": worker.computed,
            "bundle": facts,
            "engines": engines,
            "open_s": worker.open_s,
            "first_sample_s": first_s,
            "device_bytes": None if before_bytes is None or after_bytes is None else after_bytes - before_bytes,
            "peak_rss_bytes": worker.peak_rss_bytes,
            "base": None if base is None else str(self.base),
            "speeds": speeds(samples, counts),
        }

    def forget(self, case: Case, others: Sequence[Case]) -> None:
        """Deletes the bundle of a case that is done with, unless it is the base's or another case needs it."""
        needed = {self._bundles.path(other) for other in (self.base, *others) if other is not None}
        if self._bundles.path(case) not in needed:
            self._bundles.drop(case)

    @cached_property
    def _reference(self) -> Reference:
        return reference_of(self._bundles, self._plan)

    def _opened_base(self) -> RuntimeWorker | None:
        """The base, opened unless it is; None: this is the first case."""
        if self.base is None:
            return None
        if self._base_worker is None or not self._base_worker.is_running:
            bundle, _ = self._bundles.get(self.base)
            self._base_worker = self._stack.enter_context(RuntimeWorker(self._job(bundle, self.base)))
        return self._base_worker

    def _job(self, bundle: Path, case: Case) -> Job:
        frames = self._folder / "frames.npy"
        if not frames.exists():
            np.save(frames, self._bundles.frames)
        return Job(bundle=str(bundle), backend=case.backend, frames=str(frames), question=self._bundles.question)

    def _take_turns(self, workers: dict[str, RuntimeWorker], counts: Sequence[int], budget: Budget) -> Turns:
        """Samples of all workers at all counts, of one turn at least."""
        warmup, counted = self._plan.turns
        subjects: dict[tuple[str, int], Callable[[int], Sample]] = {
            (name, count): worker.sample for count in counts for name, worker in workers.items()
        }
        samples: Turns = {subject: [] for subject in subjects}
        for turn in range(warmup + counted):
            for subject, sample in subjects.items():
                found = sample(subject[1])
                if turn >= warmup:
                    samples[subject].append(found)
            if turn >= warmup and budget.spent:
                break
        return samples

    def _device_bytes(self) -> int | None:
        """What all processes hold of the device's memory; None: not a CUDA device."""
        if self._plan.device.type != "cuda":
            return None
        free, total = torch.cuda.mem_get_info(self._plan.device)
        return total - free


def speeds(samples: Turns, counts: Sequence[int]) -> list[dict[str, Any]]:
    """The medians of a case at each number of video tokens, and its ratios.

    Args:
        samples: of ``case`` and, unless it is the first, of ``base``: those with the same index are of one turn.
        counts: numbers of video tokens.
    """
    rows = []
    for count in counts:
        own = samples["case", count]
        whole_s = [sample.whole_chain_s for sample in own]
        rows.append(
            {
                "num_video_tokens": count,
                "samples_per_s": 1 / statistics.median(whole_s),
                "times_baseline": _ratio(samples.get(("case", BASELINE.num_video_tokens)), own),
                "times_base": _ratio(samples.get(("base", count)), own),
                "preprocess_ms": 1e3 * statistics.median(sample.preprocess_s for sample in own),
                "video_encoder_ms": 1e3 * statistics.median(sample.video_encoder_s for sample in own),
                "prefill_ms": 1e3 * statistics.median(sample.prefill_s for sample in own),
                "first_token_ms": 1e3 * statistics.median(sample.whole_chain_s - sample.steps_s for sample in own),
                "token_ms": 1e3 * statistics.median(sample.per_token_s for sample in own),
                "whole_s": whole_s,
            }
        )
    return rows


def _ratio(theirs: Sequence[Sample] | None, ours: Sequence[Sample]) -> float | None:
    """How many times as fast as theirs, the median over the turns; None: there are none to compare with."""
    if theirs is None:
        return None
    return statistics.median(their.whole_chain_s / our.whole_chain_s for their, our in zip(theirs, ours, strict=True))
