"""A stack for the tests of benchmarks/peers, which computes nothing.

``engine`` is the seconds that it says a prompt and a step take, or how it fails.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.protocol import Generated


def prepare(form: str, checkpoint: Path, folder: Path) -> None:
    if form == "unknown-format":
        raise ValueError(f"there is no format {form}")
    (folder / "weights").write_text(form, "utf-8")


def open_decoder(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> StandIn:
    assert (folder / "weights").read_text("utf-8") == form
    if engine == "cannot-open":
        raise RuntimeError("the weights are of another version")
    print("what a library prints")
    return StandIn(engine)


def open_tower(form: str, engine: str, checkpoint: Path, folder: Path, threads: int) -> StandIn:
    return StandIn(engine)


class StandIn:
    def __init__(self, engine: str) -> None:
        self._engine = engine

    def generate(self, ids: Sequence[int], num_steps: int) -> Generated:
        if self._engine == "dies":
            print("illegal instruction", file=sys.stderr, flush=True)
            os._exit(4)
        seconds = float(self._engine)
        return Generated(len(ids) * seconds, [seconds] * num_steps, [float(ids[0]), seconds])

    def encode(self, frames_F3SS: Any) -> None:
        assert frames_F3SS.shape == (2, 3, 4, 4)
