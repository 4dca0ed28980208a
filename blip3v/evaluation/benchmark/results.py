"""The result of a benchmark, as it is kept: scores with all that they depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from blip3v.errors import ConfigError
from blip3v.evaluation.benchmark.predictions import Header
from blip3v.publishing import write_file
from blip3v.strict_json import dumps, from_dict, read_json

__all__ = ["SUFFIX", "JudgeRecord", "Result", "Score", "Unread", "read_result", "read_results", "save_result"]

SUFFIX = ".result.json"
_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class Score:
    """A number with its 95 % interval."""

    name: str
    value: float | None  # None: nothing could be scored
    num: int  # of questions behind it
    kind: str = ""  # of question; empty: all
    low: float | None = None  # None: it has no interval
    high: float | None = None


@dataclass(frozen=True, kw_only=True)
class Unread:
    """A question without a prediction."""

    index: int
    key: str
    video: str
    error: str


@dataclass(frozen=True, kw_only=True)
class JudgeRecord:
    """Who judged, by what, and what it took."""

    url: str
    model: str  # that was asked for
    answered_by: tuple[str, ...]  # that the endpoint says have answered
    prompt: str  # its name
    prompt_digest: str
    num_judged: int
    num_unparsable: int  # of them without a verdict: no reply could be read
    num_requests: int  # that were sent; the other replies were in the cache
    prompt_tokens: int
    completion_tokens: int
    cost: float | None  # in the currency of the prices; None: these were not given


@dataclass(frozen=True, kw_only=True)
class Result:
    """One benchmark of one model."""

    header: Header
    predictions: str  # name of their file
    predictions_digest: str  # of its content, whatever the order of the lines
    scores: tuple[Score, ...]
    unread: tuple[Unread, ...]
    judge: JudgeRecord | None
    settings: dict[str, str]  # how scores were computed, where that can differ
    blip3v: str  # version that scored
    schema: int = _SCHEMA

    def score(self, name: str) -> Score | None:
        """The score of this name over all kinds."""
        return next((one for one in self.scores if (one.name, one.kind) == (name, "")), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def save_result(result: Result, path: Path) -> None:
    """Writes a result.

    Raises:
        OSError: it cannot be written.
    """
    write_file(path, dumps(result.to_dict()))


def read_results(folder: Path) -> list[Result]:
    """All results under a folder of results: one folder for each model, in the order of their names.

    Raises:
        ConfigError: a file is not a result; the message names it.
    """
    return [read_result(path) for path in sorted(folder.glob(f"*/*{SUFFIX}"))]


def read_result(path: Path) -> Result:
    """Reads a result.

    Raises:
        ConfigError: the file is not one; the message names it.
    """
    values: Mapping[str, Any] = read_json(path)
    if values.get("schema") != _SCHEMA:
        raise ConfigError(f"{path} has schema {values.get('schema')!r}; this version reads {_SCHEMA}; make it anew")
    return from_dict(Result, values, str(path))
