"""Turns of candidates beside the default: their order, who is left out, and who counts as faster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, cast

import pytest

from blip3v.bundle.tuning import Candidate
from blip3v.errors import BackendError
from blip3v.tuning.turns import Timed, measure
from blip3v.tuning.worker import GraphWorker


class ScriptedWorker:
    """Stands in for a process that holds a graph: its samples take what a script says."""

    version = "1"

    def __init__(self, name: str, seconds: Sequence[float], log: list[str]) -> None:
        self.name, self._seconds, self._log, self.is_open = name, iter(seconds), log, True

    def sample(self) -> dict[str, float]:
        self._log.append(self.name)
        return {"run": next(self._seconds)}

    def __enter__(self) -> ScriptedWorker:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.is_open = False


class Script:
    """Opens workers by the threads of a candidate: what each sample takes."""

    def __init__(self, seconds: dict[int, Sequence[float]]) -> None:
        self.log: list[str] = []
        self.workers: list[ScriptedWorker] = []
        self.most_open = 0
        self._seconds = seconds

    def open(self, candidate: Candidate) -> GraphWorker:
        number = candidate.threads or 0
        if not self._seconds[number]:
            raise BackendError("it is broken")
        self.workers.append(ScriptedWorker(str(number), self._seconds[number], self.log))
        self.most_open = max(self.most_open, sum(worker.is_open for worker in self.workers))
        return cast(GraphWorker, self.workers[-1])

    def measure(
        self, count: int, *, at_once: int = 9, after: Callable[[Any], None] = lambda group: None
    ) -> list[Timed]:
        candidates = [Candidate(backend="onnxruntime", threads=number or None) for number in range(count)]
        return measure(candidates, self.open, weigh=lambda times: times["run"], at_once=at_once, seconds=0, after=after)


def test_candidates_take_turns_and_are_compared_within_a_turn() -> None:
    # A machine that becomes slower: the second takes less than the default in each turn, and more in the next.
    script = Script({0: [3, 10, 20, 40], 1: [3, 8, 16, 32]})
    default, other = script.measure(2)
    assert script.log == list("01" + "01" * 3)
    assert (default.speedup, other.speedup) == (1, 1.25)
    assert (other.median_s, other.medians_s) == (16, {"run": 16})
    assert other.is_faster
    assert not any(worker.is_open for worker in script.workers)


def test_what_is_far_slower_has_no_turns_and_what_does_not_open_is_told() -> None:
    script = Script({0: [3] * 4, 1: [4] * 4, 2: [], 3: [3] * 4})
    found = script.measure(4)
    assert [one.why_not for one in found] == [
        "",
        "left out: 1.3 times the default's time",
        "does not run: it is broken",
        "",
    ]
    assert script.log == list("013" + "03" * 3)
    assert [len(one.turns) for one in found] == [3, 0, 0, 3]


def test_short_samples_warm_up_several_times_and_the_best_counts() -> None:
    script = Script({0: [1.9, *[0.1] * 40], 1: [0.9, 0.15, *[0.9] * 4, *[0.05] * 40]})
    _, other = script.measure(2)
    assert other.speedup == 2
    assert len(other.turns) > 3
    script = Script({0: [0.1] * 40, 1: [0.3] * 9})
    assert script.measure(2)[1].why_not == "left out: 3.0 times the default's time"


def test_the_default_is_open_with_every_group_that_fits() -> None:
    groups: list[list[int | None]] = []
    script = Script({number: [3] * 4 for number in range(4)})
    found = script.measure(
        4, at_once=2, after=lambda group: groups.append([timed.candidate.threads for timed, _ in group])
    )
    assert groups == [[None, 1], [None, 2], [None, 3]]
    assert script.most_open == 2
    assert [one.candidate.threads for one in found] == [None, 1, 2, 3]


def test_a_default_that_does_not_open_is_an_error() -> None:
    with pytest.raises(BackendError, match="it is broken"):
        Script({0: [], 1: [3] * 4}).measure(2)


@pytest.mark.parametrize(
    ("speedups", "is_faster"),
    [
        ((1.2, 1.1, 1.3, 0.9), True),
        ((1.2, 1.3, 0.9, 0.9), False),  # as often slower
        ((1.02, 1.02, 1.02), False),  # no more than chance
        ((), False),
    ],
)
def test_faster_means_clearly_and_in_most_turns(speedups: tuple[float, ...], is_faster: bool) -> None:
    assert Timed(candidate=Candidate(backend="openvino"), speedups=speedups).is_faster is is_faster
