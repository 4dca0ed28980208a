"""The JSON of a run, written after each step, so that an interrupted one goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip3v.errors import UsageError
from blip3v.publishing import write_file

__all__ = ["SCHEMA_VERSION", "Result", "read_result"]

SCHEMA_VERSION = 1


class Result:
    """What has been measured so far.

    Args:
        path: the JSON; read if it is there.
        setup: shapes and amounts. A JSON with others is not added to.

    Raises:
        UsageError: the JSON has another setup or schema version.
    """

    def __init__(self, path: Path, setup: Mapping[str, Any]) -> None:
        self._path = path
        self.values: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "setup": dict(setup),
            "environments": {},
            "prepared_s": {},
            "not_run": {},
            "groups": [],
        }
        if path.is_file():
            self.values = read_result(path)
            self._check_setup(setup)

    def _check_setup(self, setup: Mapping[str, Any]) -> None:
        found = self.values["setup"]
        other = sorted(key for key in found.keys() | setup.keys() if found.get(key) != setup.get(key))
        if other:
            texts = (f"{key} {found.get(key)}, not {setup.get(key)}" for key in other)
            raise UsageError(
                f"{self._path} was measured with {'; '.join(texts)}; repeat its options, or choose another OUT"
            )

    def has(self, peer: str, part: str) -> bool:
        """Whether the part of the peer has been measured."""
        return any(group["part"] == part and peer in group["peers"] for group in self.values["groups"])

    def forget(self, peer: str, part: str) -> None:
        """Removes what was measured of a peer that is to be measured again."""
        for group in self.values["groups"]:
            if group["part"] == part and peer in group["peers"] and peer != group["ours"]:
                group["peers"].remove(peer)
                for key in ("opened_s", "peak_rss_bytes", "cosine_to_ours", "summary"):
                    group.get(key, {}).pop(peer, None)
                for turn in group["turns"]:
                    del turn[peer]

    def add(self, group: Mapping[str, Any], failed: Mapping[str, str], part: str) -> None:
        """Adds a measurement, which may be empty, and why peers are not in it; writes the JSON."""
        if group:
            alone = {"part": part, "ours": group["ours"], "peers": [group["ours"]]}
            kept = [old for old in self.values["groups"] if {key: old[key] for key in alone} != alone]
            self.values["groups"] = [*kept, dict(group)]
            for peer in group["peers"]:
                self.values["not_run"].get(peer, {}).pop(part, None)
        for peer, reason in failed.items():
            self.values["not_run"].setdefault(peer, {})[part] = reason
        self.values["not_run"] = {peer: parts for peer, parts in self.values["not_run"].items() if parts}
        self.save()

    def save(self) -> None:
        """Writes the JSON."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_file(self._path, json.dumps(self.values, indent=1, ensure_ascii=False) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """The JSON of a run.

    Raises:
        UsageError: it is not one of this schema version.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read as the JSON of benchmarks/peers/run.py: {error}") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version != SCHEMA_VERSION:
        raise UsageError(f"{path} has schema_version {version!r}; {SCHEMA_VERSION} is read; choose another OUT")
    return dict(values)
