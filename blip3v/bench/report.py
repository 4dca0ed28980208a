"""From seconds to figures: statistics of each stage, samples per second, ratios to the baseline, and their JSON.

Not here: how they are shown (``commands/bench.py``).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from blip3v.bench.limits import Limits
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS
from blip3v.bench.metrics import Metrics
from blip3v.bench.sample import Sample, Shape
from blip3v.bench.shares import Share, shares_of
from blip3v.bench.statistics import Statistics
from blip3v.bench.work import Work
from blip3v.bundle import Bundle
from blip3v.bundle.layout import MANIFEST
from blip3v.bundle.scan import hash_file
from blip3v.hub import model_name
from blip3v.runtime import BackendReport

__all__ = [
    "LANGUAGE_MODEL",
    "SCHEMA_VERSION",
    "STAGES",
    "WHOLE_CHAIN",
    "BenchReport",
    "BundleFacts",
    "ReportRow",
    "Setup",
]

SCHEMA_VERSION = 2

# Attributes of Sample. The first five are the stages; other_s is the time between them.
STAGES = ("file_decode_s", "preprocess_s", "video_encoder_s", "prefill_s", "per_token_s", "other_s")
WHOLE_CHAIN = "whole_chain_s"
LANGUAGE_MODEL = "language_model_s"


@dataclass(frozen=True, kw_only=True)
class BundleFacts:
    """The bundle that a row is about."""

    name: str  # its folder's name
    manifest_sha256: str
    model: str
    encoder: str
    num_video_tokens: int  # video tokens that the language model sees
    own_num_video_tokens: int  # of the bundle's encoder; if they differ, its tokens are repeated or cut
    all_num_video_tokens: int  # of a clip without a temporal encoder: the baseline
    num_frames: int
    precision: str  # of the stored weights
    weights: str  # "trained", "untrained" (a new temporal encoder on a trained base) or "random"
    parity_checked: bool

    @classmethod
    def of(cls, bundle: Bundle, num_video_tokens: int | None = None) -> BundleFacts:
        """The facts of an opened bundle, measured with ``num_video_tokens``; None: its own number."""
        manifest, config = bundle.manifest, bundle.config
        source = manifest.source
        return cls(
            name=model_name(bundle.path),
            manifest_sha256=hash_file(bundle.path / MANIFEST),
            model=manifest.model,
            encoder=manifest.encoder,
            num_video_tokens=manifest.num_video_tokens if num_video_tokens is None else num_video_tokens,
            own_num_video_tokens=manifest.num_video_tokens,
            all_num_video_tokens=manifest.num_frames * config.resampler.num_latents,
            num_frames=manifest.num_frames,
            precision=manifest.precision.name,
            weights="random" if source.random_init else "trained" if source.trained else "untrained",
            parity_checked=manifest.parity is not None,
        )


@dataclass(frozen=True, kw_only=True)
class ReportRow:
    """A bundle on one back end in one shape, and its samples, one per turn."""

    bundle: BundleFacts
    backend: BackendReport
    shape: Shape
    question: str
    open_s: float  # to open the bundle, including the start of its process
    peak_rss_bytes: int | None  # of the process that holds only this bundle, without the one that decodes the file
    samples: tuple[Sample, ...]
    work: Work | None = None  # of a turn; None with requests at once, whose stages overlap

    @property
    def tokens_per_s(self) -> float | None:
        """New tokens per second at the median decoding step; None with requests at once, whose steps overlap."""
        return self.per_second("per_token_s")

    @property
    def metrics(self) -> Metrics:
        """Latency and throughput of its requests."""
        return Metrics.of(self.samples)

    def shares(self, limits: Limits) -> tuple[Share, ...]:
        """How much of the machine's limits its stages reach; () with requests at once, whose stages overlap."""
        if self.work is None:
            return ()
        medians = {name: self.statistics(name).p50 for name in ("video_encoder_s", "prefill_s", "per_token_s")}
        return shares_of(self.work, limits, **medians)

    def seconds(self, quantity: str) -> list[float]:
        """The values of a quantity of ``Sample``, by its name, turn by turn."""
        return [getattr(sample, quantity) for sample in self.samples]

    def statistics(self, quantity: str) -> Statistics:
        """Figures of a quantity over the turns."""
        return Statistics.of(self.seconds(quantity))

    def per_second(self, quantity: str) -> float | None:
        """Requests per second at the median time; None for a part of requests at once, which overlap."""
        if not self._is_counted(quantity):
            return None
        return self.shape.num_requests / self.statistics(quantity).p50

    def ratio(self, quantity: str, baseline: ReportRow) -> float | None:
        """How many times as fast as the baseline, a request: the median of the quotients within each turn.

        None for a part of requests at once.
        """
        if not (self._is_counted(quantity) and baseline._is_counted(quantity)):
            return None
        pairs = zip(baseline.seconds(quantity), self.seconds(quantity), strict=True)
        more = self.shape.num_requests / baseline.shape.num_requests
        return float(np.median([theirs / ours for theirs, ours in pairs])) * more

    def _is_counted(self, quantity: str) -> bool:
        return quantity == WHOLE_CHAIN or self.shape.requests_at_once == 1


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What was measured, and how often."""

    clip: str  # file name
    clip_sha256: str
    warmup: int  # discarded turns before the measured ones
    repetitions: int  # measured turns
    threads: int | None  # per operator; None: one per physical core
    question_tokens: int = QUESTION_TOKENS
    new_tokens: int = NEW_TOKENS
    decoding: str = "greedy, stop token ignored"


@dataclass(frozen=True, kw_only=True)
class BenchReport:
    """A complete measurement. Samples with the same index in two rows were taken in the same turn."""

    setup: Setup
    rows: tuple[ReportRow, ...]
    environment: dict[str, Any]
    limits: Limits | None = None  # of the machine; None: not asked for
    command: str | None = None  # that was typed; None: measured from Python

    @property
    def baseline(self) -> ReportRow | None:
        """What ratios are to: the first row with all tokens, as without a temporal encoder (1024 for 8 frames).

        Without such a row, the first row if the rows differ in batch or requests at once; None: neither.
        """
        all_tokens = (row for row in self.rows if row.bundle.num_video_tokens == row.bundle.all_num_video_tokens)
        several = len({(row.shape.batch_size, row.shape.requests_at_once) for row in self.rows}) > 1
        return next(all_tokens, self.rows[0] if several else None)

    def to_dict(self) -> dict[str, Any]:
        """The measurement, ready for JSON, including the seconds of every sample."""
        baseline = self.baseline
        return {
            "schema_version": SCHEMA_VERSION,
            "command": self.command,
            "setup": dataclasses.asdict(self.setup),
            "environment": self.environment,
            "limits": None if self.limits is None else dataclasses.asdict(self.limits),
            "baseline": None if baseline is None else baseline.bundle.name,
            "rows": [_row(row, baseline, self.limits) for row in self.rows],
        }


def _row(row: ReportRow, baseline: ReportRow | None, limits: Limits | None) -> dict[str, Any]:
    return {
        **dataclasses.asdict(row.bundle),
        "batch_size": row.shape.batch_size,
        "requests_at_once": row.shape.requests_at_once,
        "backend": dataclasses.asdict(row.backend),
        "computed_in": row.backend.computed,
        "question": row.question,
        "prompt_tokens": row.samples[0].prompt_tokens,
        "open_s": row.open_s,
        "tokens_per_s": row.tokens_per_s,
        "peak_rss_bytes": row.peak_rss_bytes,
        "whole_chain": _throughput(row, WHOLE_CHAIN, baseline),
        "language_model": _throughput(row, LANGUAGE_MODEL, baseline),
        "metrics": dataclasses.asdict(row.metrics),
        "stages": {name: dataclasses.asdict(row.statistics(name)) for name in (*STAGES, WHOLE_CHAIN, LANGUAGE_MODEL)},
        "work": None if row.work is None else dataclasses.asdict(row.work),
        "shares": [] if limits is None else [dataclasses.asdict(share) for share in row.shares(limits)],
        "samples": [sample.to_dict() for sample in row.samples],
    }


def _throughput(row: ReportRow, quantity: str, baseline: ReportRow | None) -> dict[str, float | None]:
    return {
        "samples_per_s": row.per_second(quantity),
        "ratio": None if baseline is None else row.ratio(quantity, baseline),
    }
