"""Samples per second of bundles, measured in turns so that drift of the machine affects all of them alike.

Each bundle runs in its own process, which holds nothing else: its peak memory is its own and does not include PyTorch,
which may have exported the bundles a moment before.
"""

from blip3v.bench.defaults import ROWS, BundleRow, default_bundles, default_film, write_default_clip
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS, Sample
from blip3v.bench.report import BenchReport, ReportRow, Statistics
from blip3v.bench.run import run_bench

__all__ = [
    "NEW_TOKENS",
    "QUESTION_TOKENS",
    "ROWS",
    "BenchReport",
    "BundleRow",
    "ReportRow",
    "Sample",
    "Statistics",
    "default_bundles",
    "default_film",
    "run_bench",
    "write_default_clip",
]
