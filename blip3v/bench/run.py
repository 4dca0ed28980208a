"""The whole measurement: bundles and a clip in, a report out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from blip3v.bench.environment import describe_environment, load_average
from blip3v.bench.limits import Limits
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS, question_of_length, take_turns
from blip3v.bench.report import BenchReport, BundleFacts, ReportRow, Setup
from blip3v.bench.sample import Shape
from blip3v.bench.work import work_of
from blip3v.bench.worker import Job, Worker
from blip3v.bundle import open_bundle
from blip3v.bundle.scan import hash_file
from blip3v.errors import UnsupportedVideoError, UsageError
from blip3v.runtime import OpenEstimate
from blip3v.runtime.backends import AUTO
from blip3v.runtime.opening import check_threads, estimate_open

__all__ = ["check_clip", "run_bench"]

_ONE = Shape()


def check_clip(clip: Path) -> None:
    """Checks that the clip to decode is a file; what is in it, decoding finds out.

    Raises:
        UnsupportedVideoError: it is not.
    """
    if not clip.is_file():
        raise UnsupportedVideoError(f"{clip} is not a file; name a video file for each sample to decode")


def run_bench(
    bundles: Sequence[Path],
    clip: Path,
    *,
    warmup: int,
    repetitions: int,
    shapes: Sequence[Shape] = (_ONE,),
    question_tokens: int = QUESTION_TOKENS,
    new_tokens: int = NEW_TOKENS,
    backends: Sequence[str] = (AUTO,),
    threads: int | None = None,
    limits: Limits | None = None,
    command: str | None = None,
    on_estimate: Callable[[Path, OpenEstimate], None] = lambda path, needed: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> BenchReport:
    """Measures bundles in turns, each on each back end in its own process.

    Args:
        bundles: the bundles' folders, at least one.
        clip: the video file that each sample decodes.
        warmup: discarded turns before the measured ones, at least 0.
        repetitions: measured turns, at least 1.
        shapes: to measure each bundle in, at least one. A bundle is opened once for all of them. Video tokens are
            repeated or cut to a shape's number: the language model's time depends only on that.
        question_tokens: of every question, at least 1; the tokens of the chat template come on top.
        new_tokens: of every answer, at least 2.
        backends: to measure each bundle on, as ``VideoLM.open`` accepts them; at least one.
        threads: per operator; None: one per physical core.
        limits: of the machine, measured before (``measure_limits``), for the report; None: it has no shares of them.
        command: that was typed, for the report.
        on_estimate: called with what opening each bundle needs, before any is loaded.
        progress: called after each sample with the number of samples taken so far and in total.

    Raises:
        ArtifactError: one of them is not a bundle, or has changed since it was written.
        UsageError: a back end is unknown, ``threads`` is below 1 or more than the logical CPUs, or ``new_tokens`` is
            below 2.
        ProviderError: a back end is not installed.
        VideoError: the clip cannot be used.
        RequestError: a sample does not fit a bundle's context.
        BackendError: the inference engine failed, or the bundles do not all fit in memory.
    """
    check_threads(threads)
    check_clip(clip)
    if new_tokens < 2:
        raise UsageError(f"new_tokens is {new_tokens}; at least 2 are needed, since the first comes from the prefill")
    opened = [open_bundle(path) for path in bundles]
    for path, bundle in zip(bundles, opened, strict=True):
        for backend in backends:
            on_estimate(path, estimate_open(bundle, backend=backend))
    questions = [question_of_length(bundle.tokenizer, question_tokens) for bundle in opened]
    pairs = [(index, backend) for index in range(len(bundles)) for backend in backends]
    jobs = [
        Job(
            bundle=str(bundles[index]),
            clip=str(clip),
            question=questions[index],
            threads=threads,
            backend=backend,
            num_new_tokens=new_tokens,
        )
        for index, backend in pairs
    ]
    load_before = load_average()
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(job)) for job in jobs]
        subjects = [(index, shape) for index in range(len(workers)) for shape in shapes]
        turns = take_turns(
            [partial(workers[index].sample, shape) for index, shape in subjects],
            warmup=warmup,
            repetitions=repetitions,
            progress=progress,
        )
    rows = [
        ReportRow(
            bundle=BundleFacts.of(opened[pairs[index][0]], shape.num_video_tokens),
            backend=workers[index].backend,
            shape=shape,
            question=jobs[index].question,
            open_s=workers[index].open_s,
            peak_rss_bytes=workers[index].peak_rss_bytes,
            samples=samples,
            work=None
            if shape.requests_at_once > 1
            else work_of(
                opened[pairs[index][0]],
                workers[index].backend,
                prompt_tokens=samples[0].prompt_tokens,
                new_tokens=new_tokens,
                batch_size=shape.batch_size,
            ),
        )
        for (index, shape), samples in zip(subjects, turns, strict=True)
    ]
    setup = Setup(
        clip=clip.name,
        clip_sha256=hash_file(clip),
        warmup=warmup,
        repetitions=repetitions,
        threads=threads,
        question_tokens=question_tokens,
        new_tokens=new_tokens,
    )
    environment = describe_environment() | {"load_average": {"before": load_before, "after": load_average()}}
    return BenchReport(setup=setup, rows=tuple(rows), environment=environment, limits=limits, command=command)
