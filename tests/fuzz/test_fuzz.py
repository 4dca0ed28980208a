"""Damaged videos, bundles, checkpoints and prompts: each is taken or refused with an error of ours, in bounded time.

The default suite runs a few cases of each. The long run, 2,000 of each:

    pytest tests/fuzz -m slow

A failure names its seed; ``pytest tests/fuzz -k TARGET --fuzz-seed N`` runs that case alone.
"""

from __future__ import annotations

import collections
import random
import signal
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from small_checkpoint import small_preset
from targets import TARGETS, Case

from blip3v import config
from blip3v.errors import Blip3vError

NUM_QUICK = {"videos": 25, "bundles": 80, "checkpoints": 120, "prompts": 300}
NUM_LONG = 2000
LIMIT_S = 60  # of one case, on a busy machine


@dataclass
class Result:
    """How the cases ended."""

    outcomes: collections.Counter[str] = field(default_factory=collections.Counter)  # "taken", or the error's type
    defects: dict[str, list[int]] = field(default_factory=dict)  # an error that is not ours, and where -> its seeds

    def report(self) -> str:
        """One line for each defect, with the seeds to run again."""
        return "\n".join(f"{what}: seeds {seeds}" for what, seeds in self.defects.items())


@pytest.fixture(params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def case(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setitem(config.PRESETS, "xgen-mm-vid", small_preset())
    return TARGETS[target](tmp_path)


def test_a_damaged_input_is_taken_or_refused(
    target: str, case: Case, request: pytest.FixtureRequest, capfd: pytest.CaptureFixture[str]
) -> None:
    seed = request.config.getoption("--fuzz-seed")
    result = run(target, case, range(NUM_QUICK[target]) if seed is None else [seed])
    assert not result.defects, result.report()
    assert capfd.readouterr().out == "", "a library printed to stdout"
    if seed is None:
        assert result.outcomes["taken"], "no case reached the end: only the first checks are tested"
        assert len(result.outcomes) > 1, "nothing was refused: the target damages nothing"


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_2000_damaged_inputs_are_taken_or_refused(
    target: str, case: Case, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    result = run(target, case, range(1000, 1000 + NUM_LONG), tmp_path / "seed")
    with capfd.disabled():
        print(f"\n{target}: {NUM_LONG} cases, {dict(result.outcomes.most_common())}")
    assert not result.defects, result.report()
    assert capfd.readouterr().out == "", "a library printed to stdout"


def run(target: str, case: Case, seeds: Iterable[int], note: Path | None = None) -> Result:
    """Runs the cases. ``note`` is a file that holds the seed of the running one, in case the process dies."""
    result = Result()
    for seed in seeds:
        if note is not None:
            note.write_text(str(seed))
        try:
            with time_limit():
                case(random.Random(f"{target} {seed}"))
            result.outcomes["taken"] += 1
        except Blip3vError as error:
            name = type(error).__name__
            if str(error):
                result.outcomes[name] += 1
            else:
                result.defects.setdefault(f"{name} without a message", []).append(seed)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of a Rust library is not an Exception
            result.defects.setdefault(_signature(error), []).append(seed)
    return result


def _signature(error: BaseException) -> str:
    """The error's type and text, and the innermost line of ours that it passed."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if "blip3v/" in frame.filename]
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno} ({ours[-1].name})" if ours else "outside blip3v"
    return f"{type(error).__name__} at {where}: {str(error)[:120]}"


@contextmanager
def time_limit() -> Iterator[None]:
    """Ends a case that hangs, with the place where it hung."""

    def hung(signum: int, frame: object) -> None:
        raise AssertionError(f"a case took more than {LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(LIMIT_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
