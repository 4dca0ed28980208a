"""The paper's benchmarks: predictions of a model folder or a bundle, their scores, and the paper's tables.

Predictions come first and are kept (``predictions.py``, ``predicting.py``); they are scored without the model, as often
as one likes (``scoring.py``). Not here: the data sets themselves (``data/readers``).
"""

from __future__ import annotations

from blip3v.evaluation.benchmark.results import Result, read_results
from blip3v.evaluation.benchmark.tasks import BENCHMARKS, Benchmark

__all__ = ["BENCHMARKS", "Benchmark", "Result", "read_results"]
