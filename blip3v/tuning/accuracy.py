"""How far a candidate's results are from those of the default, and whether the bundle's own reports allow that.

A graph in floating point has the tolerance of its precision, which its parity with PyTorch was checked against. A
quantised bundle has the budget of its accuracy report: the points that its engines lose against fp32 there, and the
tokens that a candidate would choose otherwise than its engine does, may together not exceed it.
"""

# Letters: N positions, V logits.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.precision import Tolerance
from blip3v.bundle.reader import Bundle
from blip3v.bundle.tuning import Candidate
from blip3v.errors import ParityError
from blip3v.export.accuracy import AccuracyReport, load_report
from blip3v.export.parity import compare
from blip3v.runtime.backends import GraphName

__all__ = ["Budget", "Verdict", "budget_of", "differing_tokens"]


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate's results are good enough, and why."""

    allowed: bool
    text: str
    points: float = 0.0  # of the budget that it takes besides what its engine was reported to lose


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the results of a bundle may lose."""

    tolerances: dict[str, Tolerance]  # of the graphs that are not quantised
    report: AccuracyReport | None  # of a quantised bundle; None: there is none, or nothing is quantised
    is_quantized: bool  # any of the graphs

    def __str__(self) -> str:
        if not self.is_quantized:
            limit = max(tolerance.relative_error for tolerance in self.tolerances.values())
            return f"a relative error of {limit:g}, as for its parity with PyTorch"
        if self.report is None:
            return "nothing, since the bundle has no accuracy report"
        if self.report.budget is None:
            return "anything, since random weights have no accuracy"
        return f"a drop of {self.report.max_accuracy_drop:g} % in {self.report.budget}, as for its accuracy report"

    @property
    def compares_tokens(self) -> bool:
        """Whether candidates are judged by the tokens that they choose."""
        return self.is_quantized and self.report is not None and self.report.budget is not None

    def reported(self, backend: str) -> float | None:
        """Points that a back end loses with its own settings, as the report has it; None: not reported."""
        if self.report is None:
            return None
        engine = next((engine for engine in self.report.engines if engine.backend == backend), None)
        return None if engine is None else self.report.drop(engine)

    def known(self, candidate: Candidate, default: Candidate) -> Verdict | None:
        """The verdict on a candidate that the bundle's reports cover; None: its results have to be compared."""
        if (candidate.backend, candidate.settings) == (default.backend, default.settings):
            return Verdict(True, "the default's")
        if self.is_quantized and self.report is not None and self.report.budget is None:
            return Verdict(True, "random weights: nothing to lose")
        points = self.reported(candidate.backend)
        if candidate.settings or points is None or self.report is None:
            return None
        return Verdict(points <= self.report.max_accuracy_drop, f"{points:.2f} % lost in the bundle's report")

    def judge(
        self, graph: GraphName, candidate: Candidate, ours: NDArray[Any], theirs: NDArray[Any], spent: float
    ) -> Verdict:
        """Judges results against those of the candidate's ``base``.

        Args:
            graph: which graph was run.
            candidate: whose results they are.
            ours: its video tokens or logits; logits too for the video encoder of a quantised bundle.
            theirs: those of the candidate that it is compared with.
            spent: points that the choice for the other graph takes already.
        """
        if not np.isfinite(ours).all():
            return Verdict(False, "not finite")
        if np.array_equal(ours, theirs):
            return Verdict(True, "the same results")
        if not self.is_quantized:
            found = compare(graph, "tuning", ours, theirs, self.tolerances[graph])
            return Verdict(found.passed, f"error {found.relative_error:.1e}, cosine {found.cosine:.5f}")
        if self.report is None:
            return Verdict(False, "other results, and no accuracy report")
        differing, total = differing_tokens(ours, theirs), len(ours)
        points, room = 100 * differing / total, self._room(candidate) - spent
        text = f"{differing} of {total} tokens differ" + (f", {max(room, 0):.2g} % may" if differing else "")
        return Verdict(points <= room, text, points)

    def _room(self, candidate: Candidate) -> float:
        """Points that are left; what an engine that was not measured loses is not known, so it has none."""
        assert self.report is not None
        reported = [self.report.drop(engine) for engine in self.report.engines]
        own = self.reported(candidate.backend)
        worst = own if own is not None else max((drop for drop in reported if drop is not None), default=0.0)
        return self.report.max_accuracy_drop - max(worst, 0.0)


def budget_of(bundle: Bundle) -> Budget:
    """What the results of a bundle may lose, from its manifest and its report."""
    graphs = bundle.manifest.precision.graphs
    floats = {graph: spec.tolerance for graph, spec in graphs.items() if not spec.is_quantized}
    is_quantized = len(floats) < len(graphs)
    if not is_quantized:  # the decoder is fed the video encoder's tokens
        floats["decoder"] = max(floats.values(), key=lambda tolerance: tolerance.relative_error)
    return Budget(
        tolerances={str(graph): tolerance for graph, tolerance in floats.items()},
        report=load_report(bundle.path) if is_quantized else None,
        is_quantized=is_quantized,
    )


def differing_tokens(ours_NV: NDArray[Any], theirs_NV: NDArray[Any]) -> int:
    """Positions where another token is the most likely one.

    Raises:
        ParityError: the shapes differ.
    """
    if ours_NV.shape != theirs_NV.shape:
        raise ParityError(f"logits have the shapes {ours_NV.shape} and {theirs_NV.shape}; report this as a bug")
    return int((ours_NV.argmax(-1) != theirs_NV.argmax(-1)).sum())
