"""A result against an earlier one: whether the two may be compared, and which medians are worse.

Two results compare if they asked for the same thing on the same machine with the same bundles. What may have changed
between them is the code and the engines, whose versions both results name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from blip3v.bench.labels import row_labels
from blip3v.bench.results import Result
from blip3v.errors import UsageError

__all__ = ["Comparison", "Median", "check_same", "compare"]

# Of both kinds of results; turns may differ in number.
_SETUP = (
    *("clip_sha256", "question_tokens", "new_tokens", "threads", "decoding"),
    *("preset", "device", "precision", "gradient_checkpointing"),
)
_MACHINE = ("cpu", "physical_cores", "usable_cpus", "cpu_quota", "architecture")
_STAGES = ("step_s", "file_decode_s", "preprocess_s", "video_encoder_s", "prefill_s", "per_token_s", "whole_chain_s")
_METRICS = ("time_to_first_token_s", "inter_token_latency_s")
_ROW = ("encoder", "num_video_tokens", "precision", "computed_in", "batch_size", "requests_at_once")


@dataclass(frozen=True, kw_only=True)
class Median:
    """One median, in seconds, in both results."""

    row: str  # label of the row
    quantity: str
    before_s: float
    now_s: float

    @property
    def ratio(self) -> float:
        """Now over before: above 1 is slower."""
        return self.now_s / self.before_s


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """All medians that both results have."""

    medians: tuple[Median, ...]
    tolerance: float  # share by which a median may be slower, such as 0.1
    differences: tuple[str, ...]  # why the results do not compare; not empty only if that was allowed
    unmatched: tuple[str, ...]  # rows that the baseline does not have

    @property
    def worse(self) -> tuple[Median, ...]:
        """The medians that are slower than the tolerance allows."""
        return tuple(median for median in self.medians if median.ratio > 1 + self.tolerance)

    def to_dict(self) -> dict[str, Any]:
        """The comparison, ready for JSON."""
        return {
            "tolerance": self.tolerance,
            "differences": list(self.differences),
            "rows_without_baseline": list(self.unmatched),
            "medians": [
                {
                    "row": median.row,
                    "quantity": median.quantity,
                    "before_s": median.before_s,
                    "now_s": median.now_s,
                    "ratio": median.ratio,
                    "is_worse": median in self.worse,
                }
                for median in self.medians
            ],
        }


def check_same(
    baseline: Result,
    *,
    setup: Mapping[str, Any],
    environment: Mapping[str, Any],
    bundles: Mapping[str, str],
    allow_other_setup: bool = False,
) -> tuple[str, ...]:
    """Checks, before anything is measured, that the result will compare with ``baseline``.

    Args:
        baseline: the earlier result.
        setup: of the measurement to come, as in a result.
        environment: of this machine, as in a result.
        bundles: name -> sha256 of the manifest, of each bundle to measure.
        allow_other_setup: return the differences instead of raising.

    Returns:
        The differences in words, none if the two compare.

    Raises:
        UsageError: they do not compare.
    """
    found = tuple(_differences(baseline, setup, environment, bundles))
    if found and not allow_other_setup:
        raise UsageError(
            f"the baseline was measured otherwise: {'; '.join(found)}; only results of one setup, machine and bundle "
            "are compared",
            remedy="measure a new baseline, or compare all the same with `allow_other_setup=True`",
        )
    return found


def compare(result: Result, baseline: Result, *, tolerance: float, differences: Sequence[str] = ()) -> Comparison:
    """Compares the medians of each row with those of the baseline's row of the same kind.

    Args:
        result: the new one.
        baseline: the earlier one.
        tolerance: share by which a median may be slower, at least 0.
        differences: from ``check_same``.

    Raises:
        UsageError: no row of the result is in the baseline.
    """
    left = list(baseline["rows"])
    medians: list[Median] = []
    unmatched = []
    for label, row in zip(row_labels(result["rows"]), result["rows"], strict=True):
        earlier = _same_row(row, left)
        if earlier is None:
            unmatched.append(label)
            continue
        left.remove(earlier)
        medians += _medians(label, earlier, row)
    if not medians:
        raise UsageError(
            "the baseline has no row of the same encoder, video tokens, precision, back ends and requests; "
            "measure with the options that the baseline was measured with"
        )
    return Comparison(
        medians=tuple(medians), tolerance=tolerance, differences=tuple(differences), unmatched=tuple(unmatched)
    )


def _differences(
    baseline: Result, setup: Mapping[str, Any], environment: Mapping[str, Any], bundles: Mapping[str, str]
) -> Iterator[str]:
    for names, ours, theirs in (
        (_SETUP, setup, baseline["setup"]),
        (_MACHINE, environment, baseline["environment"]),
    ):
        for name in names:
            if ours.get(name) != theirs.get(name):
                yield f"{name} was {_shown(theirs.get(name))} and is {_shown(ours.get(name))}"
    known = {row.get("manifest_sha256") for row in baseline["rows"]}
    yield from (
        f"the bundle {name} (manifest {digest[:16]}) is not in it"
        for name, digest in bundles.items()
        if digest not in known
    )


def _same_row(row: dict[str, Any], earlier: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of the same kind, of the very bundle if there is one."""
    alike = [one for one in earlier if all(one[name] == row[name] for name in _ROW)]
    same = [one for one in alike if _digest(one) == _digest(row)]
    return next(iter([*same, *alike]), None)


def _digest(row: dict[str, Any]) -> str:
    """Of the bundle, or of the config whose training was measured."""
    digest: str = row["manifest_sha256"] if "manifest_sha256" in row else row["config_sha256"]
    return digest


def _medians(label: str, before: dict[str, Any], now: dict[str, Any]) -> Iterator[Median]:
    for part, names in (("stages", _STAGES), ("metrics", _METRICS)):
        for name in names:
            old, new = (before[part] or {}).get(name), (now[part] or {}).get(name)
            if old is not None and new is not None:
                yield Median(row=label, quantity=name, before_s=old["p50"], now_s=new["p50"])


def _shown(value: object) -> str:
    """A hash by its beginning."""
    return value[:16] if isinstance(value, str) and len(value) == 64 else str(value)
