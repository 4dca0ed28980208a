"""Peers of equal bits beside ours: A B C, A B C, ..., and the ratios within each turn."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.client import PeerError, Together, Worker

__all__ = ["ANSWER_TOKENS", "MIN_TURNS", "Amounts", "cosine", "figures", "measure", "summary"]

MIN_TURNS = 3
ANSWER_TOKENS = 32  # of the part ``answer``

Turn = dict[str, dict[str, Any]]  # by peer


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """What one turn asks of each peer, and for how long there are turns."""

    prompts: tuple[int, ...]  # tokens
    steps: int  # new tokens after each prompt
    frames: int
    seconds: float  # of all turns of a group; there are at least MIN_TURNS


def measure(
    part: str,
    ours: str,
    opens: Mapping[str, Callable[[], Worker | Together]],
    amounts: Amounts,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Any], dict[str, str]]:
    """Opens the peers, measures them in turns after one turn that does not count, and closes them.

    Args:
        part: ``decoder``, ``tower`` or ``answer``.
        ours: the name of the one that the others are compared with.
        opens: opens each peer, by name; ours among them.
        amounts: what a turn is.
        progress: called with what is being done.

    Returns:
        The measurement, ready for JSON, and the reason for each peer that could not be measured. Without ours there
        is no measurement: it is empty.
    """
    failed: dict[str, str] = {}
    turns: list[Turn] = []
    with ExitStack() as stack:
        workers = _opened(opens, stack, failed, progress)
        started_s = math.inf
        while ours in workers and (len(turns) <= MIN_TURNS or time.perf_counter() - started_s < amounts.seconds):
            progress(f"{part}: turn {len(turns)}" if turns else f"{part}: warm-up")
            turns.append(_turn(part, len(turns), workers, amounts, failed))
            if len(turns) == 1:
                started_s = time.perf_counter()
        peaks = _peaks(workers, failed)
    if ours not in workers:
        return {}, failed
    kept = [{name: turn[name] for name in workers} for turn in turns[1:]]
    found: dict[str, Any] = {"part": part, "ours": ours, "peers": list(workers)}
    found |= {"opened_s": {name: worker.opened_s for name, worker in workers.items()}, "peak_rss_bytes": peaks}
    if part == "decoder":
        found["cosine_to_ours"] = _cosines(kept[0], ours)
    found["turns"] = [_without_logits(turn) for turn in kept]
    return found | {"summary": summary(found["turns"], ours)}, failed


def _opened(
    opens: Mapping[str, Callable[[], Worker | Together]],
    stack: ExitStack,
    failed: dict[str, str],
    progress: Callable[[str], None],
) -> dict[str, Worker | Together]:
    workers: dict[str, Worker | Together] = {}
    for name, open_peer in opens.items():
        progress(f"open {name}")
        try:
            worker = open_peer()
        except PeerError as error:
            failed[name] = f"not opened: {error}"
            continue
        stack.callback(worker.close)
        workers[name] = worker
    return workers


def _turn(
    part: str, number: int, workers: dict[str, Worker | Together], amounts: Amounts, failed: dict[str, str]
) -> Turn:
    """One sample of each; a peer that fails is no longer among ``workers``."""
    turn = {}
    for name, worker in list(workers.items()):
        try:
            turn[name] = dict(_sample(part, number, worker, amounts))
        except PeerError as error:
            failed[name] = f"not run: {error}"
            del workers[name]
    return turn


def _sample(part: str, number: int, worker: Worker | Together, amounts: Amounts) -> Iterator[tuple[str, Any]]:
    if part == "tower":
        yield "encode_s", worker.encode(amounts.frames)["encode_s"]
        return
    if part == "answer":
        yield from _answer(number, worker, amounts)
        return
    for prompt in amounts.prompts:
        answer = worker.generate(prompt, amounts.steps, number)
        yield f"prefill_{prompt}_s", answer["prefill_s"]
        yield f"steps_{prompt}_s", answer["steps_s"]
        yield f"logits_{prompt}", answer["logits"]


def _answer(number: int, worker: Worker | Together, amounts: Amounts) -> Iterator[tuple[str, float]]:
    """From the frames to the last token of an answer to the shortest prompt, and where the time went."""
    encode_s = worker.encode(amounts.frames)["encode_s"]
    answer = worker.generate(min(amounts.prompts), ANSWER_TOKENS - 1, number)
    steps_s = math.fsum(answer["steps_s"])
    yield "encode_s", encode_s
    yield "prefill_s", answer["prefill_s"]
    yield "steps_s", steps_s
    yield "answer_s", encode_s + answer["prefill_s"] + steps_s


def _peaks(workers: dict[str, Worker | Together], failed: dict[str, str]) -> dict[str, int | None]:
    peaks = {}
    for name, worker in list(workers.items()):
        try:
            peaks[name] = worker.peak_rss_bytes()
        except PeerError as error:
            failed[name] = f"not run: {error}"
            del workers[name]
    return peaks


def _cosines(turn: Turn, ours: str) -> dict[str, float | None]:
    """Of some logits after each prompt, the smallest; None where a peer does not show its logits."""
    keys = [key for key in turn[ours] if key.startswith("logits_")]
    found: dict[str, float | None] = {}
    for name, sample in turn.items():
        values = [cosine(sample[key], turn[ours][key]) for key in keys if sample[key] and turn[ours][key]]
        found[name] = min(values) if values else None
    return found


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Of the angle between two vectors of the same length; 0 if one is zero."""
    norms = math.sqrt(math.fsum(x * x for x in first)) * math.sqrt(math.fsum(x * x for x in second))
    return math.fsum(x * y for x, y in zip(first, second, strict=True)) / norms if norms else 0.0


def _without_logits(turn: Turn) -> Turn:
    return {name: {key: value for key, value in sample.items() if "logits" not in key} for name, sample in turn.items()}


def figures(sample: Mapping[str, Any]) -> dict[str, float]:
    """Seconds by figure; of the steps after a prompt, the median: ``step_160_s``."""
    return {
        key.replace("steps_", "step_"): statistics.median(value) if isinstance(value, list) else value
        for key, value in sample.items()
    }


def summary(turns: Sequence[Turn], ours: str) -> dict[str, dict[str, dict[str, float]]]:
    """By peer and figure: the median, and how many times as long as ours it takes, within each turn.

    ``ratio`` is the median over the turns, ``lowest`` and ``highest`` its range.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in turns[0]:
        found[name] = {}
        for figure in figures(turns[0][name]):
            seconds = [figures(turn[name])[figure] for turn in turns]
            ratios = [own / figures(turn[ours])[figure] for own, turn in zip(seconds, turns, strict=True)]
            found[name][figure] = {
                "median_s": statistics.median(seconds),
                "ratio": statistics.median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
    return found
