"""Results of earlier measurements: ``BenchReport.to_dict`` read back from a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from blip3v.bench.report import SCHEMA_VERSION
from blip3v.errors import ConfigError
from blip3v.strict_json import read_json

__all__ = ["INFERENCE", "TRAINING", "Kind", "Result", "kind_of", "read_result", "upgraded"]

# The JSON of a ``BenchReport`` or a ``TrainingReport``. What version 1 did not measure is None.
Result = dict[str, Any]
Kind = Literal["inference", "training"]
INFERENCE: Kind = "inference"
TRAINING: Kind = "training"
_MEASURED: dict[Kind, str] = {INFERENCE: "bundles", TRAINING: "training steps"}

_ADDED_TO_ROWS: Result = {"requests_at_once": 1, "metrics": None, "work": None, "shares": []}


def kind_of(result: Result) -> Kind:
    """What was measured: bundles, or training steps."""
    return TRAINING if result.get("kind") == TRAINING else INFERENCE


def read_result(path: Path, kind: Kind | None = None) -> Result:
    """Reads a result of this schema version or of version 1, which becomes like this version's.

    A file of steps (``scripts/full_size.py``) may contain the result.

    Args:
        path: a file of JSON.
        kind: that the result must have; None: either.

    Raises:
        ConfigError: the file is not such a result.
    """
    values = _within(read_json(path))
    version = values.get("schema_version")
    is_result = {"setup", "environment", "rows"} <= set(values) and isinstance(values["rows"], list) and values["rows"]
    if type(version) is not int or not is_result:
        raise ConfigError(f"{path} is not a result of a measurement; `blip3v bench -o FILE` writes one")
    if version not in (1, SCHEMA_VERSION):
        raise ConfigError(
            f"{path} has schema_version {version}; this blip3v reads 1 and {SCHEMA_VERSION}; measure again with "
            "`blip3v bench`"
        )
    if kind is not None and kind_of(values) != kind:
        raise ConfigError(
            f"{path} is a measurement of {_MEASURED[kind_of(values)]}; one of {_MEASURED[kind]} is expected here"
        )
    return upgraded(values) if version == 1 else values


def _within(values: Result) -> Result:
    steps = values.get("steps")
    found = [step["bench"] for step in steps if "bench" in step] if isinstance(steps, list) else []
    return found[0] if found else values


def upgraded(values: Result) -> Result:
    """The result of version 1 in the form of this version."""
    setup = dict(values["setup"])
    batch_size = setup.pop("batch_size")
    rows = [{"backend": None, **row, **_ADDED_TO_ROWS, "batch_size": batch_size} for row in values["rows"]]
    added = {"schema_version": SCHEMA_VERSION, "command": None, "limits": None}
    return {**values, **added, "setup": setup, "rows": rows}
