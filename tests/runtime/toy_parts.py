"""What fixtures of the runtime's tests give, for their type hints."""

from __future__ import annotations

from collections.abc import Callable

from toy_graphs import Weights

from blip3v.config import ModelConfig
from blip3v.runtime.decoder import Decoder

DecoderMaker = Callable[..., tuple[ModelConfig, Weights, Decoder]]


class Clock:
    """Stands in for the module ``time`` where a request's time is measured; it moves when told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s
