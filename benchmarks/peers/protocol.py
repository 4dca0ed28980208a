"""What a stack implements, and how its time is taken. Runs in every environment: needs the standard library alone.

A module of a stack has three functions; one whose peers lack a part leaves that function out.

    prepare(form, checkpoint, folder)            writes converted or quantised weights of ``checkpoint`` into ``folder``
    open_decoder(form, engine, checkpoint, folder, threads) -> Decoder
    open_tower(form, engine, checkpoint, folder, threads) -> Tower

``form`` and ``engine`` are those of the ``Peer`` (``peer_list.py``).
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

__all__ = ["FRAME_SEED", "Decoder", "Generated", "Tower", "few_values", "run_tool", "timed"]

FRAME_SEED = 0
_NUM_VALUES = 256


@dataclass(frozen=True)
class Generated:
    """One prompt and some tokens after it."""

    prefill_s: float  # from token ids to the logits of the last one, or to the first new token
    steps_s: list[float]  # of each further token
    logits: list[float] | None  # a few after the prompt, to compare stacks; None: the stack does not show them


class Decoder(Protocol):
    """An opened language model."""

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        """Reads a prompt into an empty cache, then takes ``num_steps`` steps of one token. Greedy, never stops early.

        Args:
            ids: the prompt.
            num_steps: new tokens after the first.
        """
        ...


class Tower(Protocol):
    """An opened vision tower: patch features after the last norm, without the pooling head."""

    def encode(self, frames_F3SS: Any) -> None:
        """Computes the features of fp32 pixels in [-1, 1], a numpy array of F frames."""
        ...


def timed(prefill: Callable[[], Any], step: Callable[[], Any], num_steps: int) -> Generated:
    """Calls ``prefill`` once and ``step`` ``num_steps`` times.

    Args:
        prefill: returns the logits (V,) after the prompt, or None. It ends when they are there.
        step: appends one token; ends when its logits are there.
        num_steps: at least 1.
    """
    started_s = time.perf_counter()
    logits = prefill()
    prefill_s = time.perf_counter() - started_s
    steps_s = []
    for _ in range(num_steps):
        started_s = time.perf_counter()
        step()
        steps_s.append(time.perf_counter() - started_s)
    return Generated(prefill_s, steps_s, None if logits is None else few_values(logits))


def run_tool(words: Sequence[str]) -> None:
    """Runs a command of the stack; if it fails, this process ends, and the command's last words are the reason."""
    ran = subprocess.run(words)
    if ran.returncode:
        raise SystemExit(ran.returncode)


def few_values(logits: Any) -> list[float]:
    """A few hundred evenly spaced values of a vector, the same ones for the same length."""
    step = max(1, len(logits) // _NUM_VALUES)
    return [round(float(value), 5) for value in logits[::step]]
