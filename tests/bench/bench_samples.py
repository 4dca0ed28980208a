"""Samples and rows with known seconds, and the rows that the tests really measure."""

from __future__ import annotations

from collections.abc import Sequence

from blip3v.bench import BenchReport, BundleRow, RequestTimes, Sample, Shape
from blip3v.bench.report import BundleFacts, ReportRow, Setup
from blip3v.runtime import BackendReport, Execution

_ORT = Execution(backend="onnxruntime", engine="ONNX Runtime", version="1.31.1", device="CPU", dtype="fp32")
BACKEND = BackendReport(stored="fp16", video_encoder=_ORT, decoder=_ORT)


def sample(scale: float = 1.0) -> Sample:
    """1 + 2 + 3 + 4 + 31 x 0.5 seconds in the stages and 0.5 between them, multiplied by ``scale``."""
    return Sample(
        whole_chain_s=26.0 * scale,
        file_decode_s=1.0 * scale,
        preprocess_s=2.0 * scale,
        video_encoder_s=3.0 * scale,
        prefill_s=4.0 * scale,
        steps_s=15.5 * scale,
        num_steps=31,
        prompt_tokens=40,
        requests=(
            RequestTimes(
                time_to_first_token_s=10.5 * scale,
                end_to_end_s=26.0 * scale,
                num_new_tokens=32,
                inter_token_s=(0.5 * scale,) * 31,
            ),
        ),
    )


def row(
    scales: Sequence[float], *, encoder: str = "none", weights: str = "trained", num_video_tokens: int | None = None
) -> ReportRow:
    """A row whose turns took ``scales`` times as long as ``sample()``."""
    own = 1024 if encoder == "none" else 32
    facts = BundleFacts(
        name=f"bundle-{encoder}",
        manifest_sha256="ab" * 32,
        model="tiny",
        encoder=encoder,
        num_video_tokens=own if num_video_tokens is None else num_video_tokens,
        own_num_video_tokens=own,
        all_num_video_tokens=1024,
        num_frames=8,
        precision="fp16",
        weights=weights,
        parity_checked=True,
    )
    samples = tuple(sample(scale) for scale in scales)
    return ReportRow(
        bundle=facts,
        backend=BACKEND,
        shape=Shape(num_video_tokens=num_video_tokens),
        question="?",
        open_s=0.5,
        peak_rss_bytes=2**27,
        samples=samples,
    )


def report(*rows: ReportRow) -> BenchReport:
    setup = Setup(clip="clip.mp4", clip_sha256="cd" * 32, warmup=1, repetitions=len(rows[0].samples), threads=None)
    environment = {
        **{"cpu": "a CPU", "physical_cores": 2, "usable_cpus": 2, "memory_bytes": 2**34, "system": "Linux"},
        **{"python": "3.11.1", "blip3v": "0.1.0", "packages": {"numpy": "2.0"}, "date": "2026-01-01T00:00:00+00:00"},
        "load_average": {"before": [0.1, 0.2, 0.3], "after": [1.5, 0.2, 0.3]},
    }
    return BenchReport(setup=setup, rows=rows, environment=environment)


SMALL_ROWS = (
    BundleRow(encoder="none", num_video_tokens=1024),
    BundleRow(encoder="tokenlearner", num_video_tokens=16, new_encoder=True),
)
