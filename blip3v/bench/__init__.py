"""Samples per second of bundles, measured in turns so that drift of the machine affects all of them alike.

Each bundle runs in its own process, which holds nothing else: its peak memory is its own and does not include PyTorch,
which may have exported the bundles a moment before.
"""

from blip3v.bench.defaults import ROWS, BundleRow, default_bundles, default_film, write_default_clip
from blip3v.bench.measure import NEW_TOKENS, QUESTION_TOKENS
from blip3v.bench.metrics import Metrics
from blip3v.bench.report import BenchReport, ReportRow
from blip3v.bench.run import run_bench
from blip3v.bench.sample import RequestTimes, Sample, Shape
from blip3v.bench.statistics import Statistics

__all__ = [
    "NEW_TOKENS",
    "QUESTION_TOKENS",
    "ROWS",
    "BenchReport",
    "BundleRow",
    "Metrics",
    "ReportRow",
    "RequestTimes",
    "Sample",
    "Shape",
    "Statistics",
    "default_bundles",
    "default_film",
    "run_bench",
    "write_default_clip",
]
