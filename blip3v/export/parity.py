"""What parity means: the tolerances, the measures, and the report.

Not here: how the numbers are obtained (``parity_video.py``, ``parity_decoder.py``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.precision import Precision, Tolerance
from blip3v.errors import ParityError

__all__ = [
    "PARITY_BACKEND",
    "ActivationRanges",
    "Comparison",
    "ParityReport",
    "TokenCheck",
    "compare",
    "count_tokens",
    "tolerances",
]

SCHEMA_VERSION = 2
PARITY_BACKEND = "onnxruntime"  # the back end that an export is checked on


def tolerances(precision: Precision) -> dict[str, Tolerance]:
    """Returns the tolerance of each graph's outputs.

    The decoder is fed the video encoder's tokens, so its logits get the wider of the two tolerances.
    """
    specs = precision.graphs.values()
    widest = max((spec.tolerance for spec in specs), key=lambda tolerance: tolerance.relative_error)
    return {"video_encoder": precision.video_encoder.tolerance, "decoder": widest}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One output of a graph compared with the reference."""

    stage: str  # vision, resampler, temporal, video_tokens, prefill, step 1 ..
    case: str  # the sizes it was run at
    relative_error: float
    cosine: float
    passed: bool


@dataclass(frozen=True, kw_only=True)
class TokenCheck:
    """Whether the graph would have chosen the reference's tokens."""

    compared: int
    differing: int  # count as failures
    close_calls: int  # differ where the reference's own two best logits are closer than the tolerance


@dataclass(frozen=True, kw_only=True)
class ActivationRanges:
    """The largest absolute value that enters or leaves any module of a layer, in PyTorch in the graph's dtype.

    An fp16 graph on a CPU computes in fp32 and cannot show an overflow; this can.
    """

    limit: float  # the largest value of the dtype
    largest: float
    layers: dict[str, float]

    @property
    def passed(self) -> bool:
        """Whether every value is finite in the dtype."""
        return self.largest <= self.limit


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What ``reports/parity.json`` holds."""

    precision: str  # as ``Precision.name``
    tolerances: dict[str, Tolerance]  # video_encoder, decoder
    clip: dict[str, Any]  # the clip shown and the question asked
    comparisons: tuple[Comparison, ...]
    tokens: TokenCheck
    activations: ActivationRanges | None  # None: no graph has a dtype that activations can overflow
    schema_version: int = SCHEMA_VERSION

    @property
    def passed(self) -> bool:
        """Whether everything matches."""
        fits = self.activations is None or self.activations.passed
        return fits and self.tokens.differing == 0 and all(row.passed for row in self.comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {**dataclasses.asdict(self), "passed": self.passed}

    def summary(self) -> dict[str, Any]:
        """Returns what the manifest says about it."""
        worst = max(self.comparisons, key=lambda row: row.relative_error)
        return {
            "passed": self.passed,
            "num_comparisons": len(self.comparisons),
            "worst_stage": worst.stage,
            "worst_relative_error": worst.relative_error,
            "worst_cosine": min(row.cosine for row in self.comparisons),
            "tokens_compared": self.tokens.compared,
            "tokens_differing": self.tokens.differing,
            "largest_activation": None if self.activations is None else self.activations.largest,
        }

    def tolerance_texts(self) -> list[str]:
        """Returns the tolerances in words: one text if both graphs have the same."""
        texts = {
            graph: f"relative error up to {limit.relative_error:g}, cosine from {limit.cosine:g} ({limit.reason})"
            for graph, limit in self.tolerances.items()
        }
        same = len(set(texts.values())) == 1
        return [*texts.values()][:1] if same else [f"{graph}: {text}" for graph, text in texts.items()]

    def check(self) -> None:
        """Raises unless everything matches.

        Raises:
            ParityError: something does not match; the message says what and by how much.
        """
        if self.passed:
            return
        misses = [
            f"{row.stage} ({row.case}): relative error {row.relative_error:.2e}, cosine {row.cosine:.6f}"
            for row in self.comparisons
            if not row.passed
        ]
        if self.tokens.differing:
            misses.append(f"{self.tokens.differing} of {self.tokens.compared} tokens differ")
        if self.activations is not None and not self.activations.passed:
            over = [name for name, value in self.activations.layers.items() if not value <= self.activations.limit]
            misses.append(f"activations overflow in {', '.join(over[:4])}")
        raise ParityError(
            f"the {self.precision} graphs do not match PyTorch: {'; '.join(misses[:4])}"
            f"{f'; and {len(misses) - 4} more' if len(misses) > 4 else ''}; "
            f"allowed: {'; '.join(self.tolerance_texts())}; no bundle was written",
            remedy="try `precision='fp32'`, which distinguishes rounding from a wrong graph",
        )


def compare(
    stage: str, case: str, got: NDArray[np.floating], expected: NDArray[np.floating], tolerance: Tolerance
) -> Comparison:
    """Measures ``got`` against ``expected`` in float64; values that are not finite never pass."""
    if got.shape != expected.shape:
        raise ParityError(
            f"{stage} ({case}) has shape {got.shape}; PyTorch returns {expected.shape}; report this as a bug"
        )
    ours, theirs = got.astype(np.float64).ravel(), expected.astype(np.float64).ravel()
    # A constant output of zeros must compare by the difference itself.
    error = float(np.abs(ours - theirs).max() / (np.abs(theirs).max() or 1.0))
    norms = float(np.linalg.norm(ours) * np.linalg.norm(theirs))
    cosine = float(ours @ theirs) / norms if norms else float(np.array_equal(ours, theirs))
    passed = error <= tolerance.relative_error and cosine >= tolerance.cosine
    return Comparison(stage=stage, case=case, relative_error=error, cosine=cosine, passed=passed)


def count_tokens(
    got_NV: Sequence[NDArray[np.floating]], expected_NV: Sequence[NDArray[np.floating]], tolerance: Tolerance
) -> TokenCheck:
    """Compares the most likely token after each of N positions; each row is (V,)."""
    differing = close_calls = 0
    for ours, theirs in zip(got_NV, expected_NV, strict=True):
        if ours.argmax() == theirs.argmax():
            continue
        second, best = np.sort(theirs)[-2:]
        if best - second < tolerance.relative_error * np.abs(theirs).max():
            close_calls += 1
        else:
            differing += 1
    return TokenCheck(compared=len(got_NV), differing=differing, close_calls=close_calls)
