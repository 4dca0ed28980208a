"""What the paper (arXiv 2410.16267) compares, and the speeds that it gives."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["BASELINE", "PAPER_SAMPLES_PER_S", "ROWS", "Row"]


class Row(NamedTuple):
    """A temporal encoder with its token count."""

    encoder: str
    num_video_tokens: int

    def __str__(self) -> str:
        return f"{self.encoder} {self.num_video_tokens}"


BASELINE = Row("none", 1024)
ROWS = (BASELINE, Row("gttm", 128), Row("tokenlearner", 32), Row("tokenlearner", 16))
# By video tokens: training samples per second on one H100. The paper states neither batch size nor precision.
PAPER_SAMPLES_PER_S = {1024: 3.3, 128: 7.5, 32: 8.2, 16: 8.5}
