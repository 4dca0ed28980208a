"""The JSON of the GPU check: rewritten after each measurement, and read by a later run to continue.

    {"schema_version": 1, "device": ..., "environment": {...}, "runs": [...],
     "parity":     {"tolerances": ..., "rows": {...}},
     "training":   {"what": ..., "rows": {...}},
     "loading":    {"what": ..., "rows": {...}},
     "generation": {"what": ..., "rows": {...}},
     "runtime":    {"what": ..., "rows": {...}}}

A row that was not measured has the reason under ``skipped``, ``refused`` (by a library) or ``failed``; one that was cut
short has ``unfinished``. The next run tries all of them again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blip3v.errors import ArtifactError
from blip3v.publishing import write_file

__all__ = ["SCHEMA_VERSION", "STAGES", "Report"]

SCHEMA_VERSION = 1
STAGES = ("parity", "training", "loading", "generation", "runtime")
_NOT_MEASURED = frozenset({"skipped", "refused", "failed"})
_WITH_PARITY = ("parity", "runtime")


class Report:
    """Measurements of one environment, by stage and row.

    Args:
        path: the file; existing measurements are kept.
        environment: what the numbers depend on; a file with another environment is refused.
        run: facts about this run.

    Raises:
        ArtifactError: the file is not such a report, or was measured in another environment.
    """

    def __init__(self, path: Path, *, environment: dict[str, Any], run: dict[str, Any]) -> None:
        self._path = path
        self.content = _read(path) if path.exists() else {}
        _check_same(path, self.content, environment)
        self.content.setdefault("schema_version", SCHEMA_VERSION)
        self.content.setdefault("environment", environment)
        self.content.setdefault("runs", []).append(run)
        self._write()

    def rows(self, stage: str) -> dict[str, Any]:
        """The measurements of a stage, by row."""
        rows: dict[str, Any] = self.content.setdefault(stage, {}).setdefault("rows", {})
        return rows

    def holds(self, stage: str, key: str) -> bool:
        """Whether a row was measured completely."""
        row = self.rows(stage).get(key, {"skipped": ""})
        return not _NOT_MEASURED & row.keys() and not row.get("unfinished", False)

    def describe(self, stage: str, key: str, value: Any) -> None:
        """Records a fact about a whole stage."""
        self.content.setdefault(stage, {})[key] = value
        self._write()

    def put(self, stage: str, key: str, row: dict[str, Any]) -> None:
        """Records a measured row, with the number of the run that measured it."""
        self.rows(stage)[key] = {"run": len(self.content["runs"]) - 1, **row}
        self._write()

    def skip(self, stage: str, key: str, why: str) -> None:
        """Records that a row was not measured, and why."""
        self.rows(stage)[key] = {"skipped": why}
        self._write()

    def misses(self) -> list[str]:
        """Rows that did not pass, of every stage that compares; a case of ``runtime`` that failed is one."""
        rows = [row for stage in _WITH_PARITY for row in self.content.get(stage, {}).get("rows", {}).items()]
        return [key for key, row in rows if row.get("passed") is False]

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._path, json.dumps(self.content, indent=1, allow_nan=False) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON: {error}; choose another --output") from error
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} is not a result of the GPU check with schema_version {SCHEMA_VERSION}; choose another --output"
        )
    return content


def _check_same(path: Path, content: dict[str, Any], environment: dict[str, Any]) -> None:
    before = content.get("environment", environment)
    changed = [key for key in environment if before.get(key) != environment[key]]
    if changed:
        values = "; ".join(f"{key} was {before.get(key)!r} and is {environment[key]!r}" for key in changed)
        raise ArtifactError(
            f"{path} was measured in another environment: {values}; one file cannot hold "
            "numbers of both, choose another --output"
        )
