"""Candidates of one graph measured in turns beside the default, each in its own process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter

from blip3v.bench.measure import take_turns
from blip3v.bundle.tuning import Candidate
from blip3v.errors import ArtifactError, BackendError
from blip3v.tuning.worker import GraphWorker

__all__ = ["MIN_GAIN", "Timed", "measure"]

MIN_GAIN = 1.03  # less is not told from chance on a machine that does other things
_MIN_WINS = 0.75  # share of the turns in which the choice has to be faster
_LONG_S = 2.0  # a sample that takes that long needs no warm-up, and tells more than a short one
_TOO_SLOW, _TOO_SLOW_IF_LONG = 2.0, 1.3  # times the default's time while both warm up
_WARM_UP_S, _MAX_WARM_UPS = 0.5, 6  # for each candidate, after its first sample
_MIN_TURNS, _MAX_TURNS = 3, 20
_LEAST_S = 2.0  # of turns, even if opening took all the time: short ones need many

Times = dict[str, float]  # part -> seconds


@dataclass(frozen=True, kw_only=True)
class Timed:
    """One candidate's times beside the default's."""

    candidate: Candidate
    version: str = ""  # of the engine; "": it did not open
    first_s: Times = field(default_factory=dict)  # of each part, while it warmed up; {} if it did not run
    turns: tuple[Times, ...] = ()  # () if it did not open, or was left out after the first turn
    weighed_s: tuple[float, ...] = ()  # of each turn
    speedups: tuple[float, ...] = ()  # the default's time over its own, of each turn
    why_not: str = ""  # why there are no turns

    @property
    def speedup(self) -> float | None:
        """Median over the turns; None: there were none."""
        return median(self.speedups) if self.speedups else None

    @property
    def median_s(self) -> float | None:
        """Of the weighed time."""
        return median(self.weighed_s) if self.weighed_s else None

    @property
    def medians_s(self) -> Times:
        """Of each part."""
        return {part: median(turn[part] for turn in self.turns) for part in (self.turns[0] if self.turns else ())}

    @property
    def is_faster(self) -> bool:
        """Whether it is faster than the default by more than chance."""
        wins = sum(speedup > 1 for speedup in self.speedups)
        return bool(self.speedups) and median(self.speedups) >= MIN_GAIN and wins >= _MIN_WINS * len(self.speedups)


@dataclass(kw_only=True)
class _Opened:
    candidate: Candidate
    worker: GraphWorker
    first: Times  # the best of its samples so far, which do not count


def measure(
    candidates: Sequence[Candidate],
    open_worker: Callable[[Candidate], GraphWorker],
    *,
    weigh: Callable[[Mapping[str, float]], float],
    at_once: int,
    seconds: float,
    after: Callable[[Sequence[tuple[Timed, GraphWorker]]], None] = lambda group: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Timed]:
    """Measures candidates A B C, A B C, ..., after each has warmed up.

    One that does not open, or is far slower than the default while it warms up, has no turns.

    Args:
        candidates: the default first.
        open_worker: opens a candidate.
        weigh: the seconds that count, from those of the parts.
        at_once: how many may be open at a time, at least 2; the default is open with each group of the others.
        seconds: that the turns should take; three turns are taken however long they are, and at most twenty.
        after: called with those of a group that had their turns, the default first, while they are still open.
        progress: called after each sample with the number of samples taken and in total, as far as that is known.

    Returns:
        One for each candidate, in their order.

    Raises:
        Blip3vError: the default does not open or run, or another one fails for a reason other than its engine.
    """
    default, *others = candidates
    size = at_once - 1
    groups = [others[first : first + size] for first in range(0, len(others), size)] or [[]]
    found: dict[int, Timed] = {}
    for number, group in enumerate(groups):
        together = [default, *group]
        timed = _measure_group(together, open_worker, weigh, seconds / len(groups), after, progress)
        first = 1 + number * size
        found.setdefault(0, timed[0])
        found.update(enumerate(timed[1:], first))
    return [found[index] for index in range(len(candidates))]


def _measure_group(
    candidates: Sequence[Candidate],
    open_worker: Callable[[Candidate], GraphWorker],
    weigh: Callable[[Mapping[str, float]], float],
    seconds: float,
    after: Callable[[Sequence[tuple[Timed, GraphWorker]]], None],
    progress: Callable[[int, int], None],
) -> list[Timed]:
    start_s = perf_counter()
    found: dict[int, Timed] = {}
    with ExitStack() as stack:
        opened: dict[int, _Opened] = {}
        for index, candidate in enumerate(candidates):
            try:
                worker = stack.enter_context(open_worker(candidate))
                opened[index] = _Opened(candidate=candidate, worker=worker, first=_warm_up(worker, weigh))
            except (BackendError, ArtifactError) as error:
                if index == 0:
                    raise
                found[index] = Timed(candidate=candidate, why_not=f"does not run: {error.message}")
        default_s = weigh(opened[0].first)
        for index, each in list(opened.items())[1:]:
            ratio = weigh(each.first) / default_s
            if ratio > (_TOO_SLOW if default_s < _LONG_S else _TOO_SLOW_IF_LONG):
                found[index] = Timed(
                    candidate=each.candidate,
                    version=each.worker.version,
                    first_s=each.first,
                    why_not=f"left out: {ratio:.1f} times the default's time",
                )
                opened.pop(index).worker.close()
        turn_s = sum(sum(each.first.values()) for each in opened.values())
        left_s = max(seconds - (perf_counter() - start_s), _LEAST_S)
        turns = take_turns(
            [each.worker.sample for each in opened.values()],
            warmup=0,
            repetitions=min(max(int(left_s / max(turn_s, 1e-6)), _MIN_TURNS), _MAX_TURNS),
            progress=progress,
        )
        defaults_s = [weigh(turn) for turn in turns[0]]
        for (index, each), own in zip(opened.items(), turns, strict=True):
            weighed_s = tuple(weigh(turn) for turn in own)
            found[index] = Timed(
                candidate=each.candidate,
                version=each.worker.version,
                first_s=each.first,
                turns=own,
                weighed_s=weighed_s,
                speedups=tuple(theirs / ours for theirs, ours in zip(defaults_s, weighed_s, strict=True)),
            )
        after([(found[index], each.worker) for index, each in opened.items()])
    return [found[index] for index in range(len(candidates))]


def _warm_up(worker: GraphWorker, weigh: Callable[[Mapping[str, float]], float]) -> Times:
    """The best of a few samples: of short ones several, since any may have been disturbed; a long one is enough."""
    samples = [worker.sample()]
    start_s = perf_counter()
    while weigh(samples[-1]) < _LONG_S and perf_counter() - start_s < _WARM_UP_S and len(samples) < _MAX_WARM_UPS:
        samples.append(worker.sample())
    return min(samples, key=weigh)
