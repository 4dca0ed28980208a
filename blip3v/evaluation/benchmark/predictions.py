"""Predictions on disk: JSON lines that a killed run leaves usable, and that are scored without the model.

The first line is the header: what was asked of what. A run adds a line for each question; one that was cut by a kill is
the last, and is dropped. A run goes on where the file ends if its header says the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

from blip3v.errors import ArtifactError, ConfigError, UsageError
from blip3v.publishing import complete_lines, write_file
from blip3v.strict_json import from_dict

__all__ = ["Header", "Prediction", "PredictionFile", "difference", "finished", "predictions_digest", "read_predictions"]

_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Header:
    """What decides the predictions. Where two are equal but for ``versions``, so are the predictions meant to be."""

    benchmark: str
    data_set: str
    split: str
    form: str  # open, caption or choice
    num_samples: int  # that are asked
    num_available: int  # that the folder has
    data_digest: str  # of every question with its references and the name of its clip
    missing: dict[str, int]  # clips that the annotations name and the folder lacks, with their questions
    model: str
    model_kind: str  # bundle or model folder
    model_digest: str
    num_video_tokens: int
    precision: str  # of the bundle's weights; fp32 for a model folder
    computed: str  # the back end, or PyTorch and its device
    question_prompt: str  # how a question becomes what is asked
    decoding: dict[str, Any]
    versions: dict[str, str]  # at the start; a run that goes on may have others
    schema: int = _VERSION


_DECIDES = tuple(field.name for field in fields(Header) if field.name != "versions")


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A question and what the model says; or why it could not be asked."""

    index: int  # of the sample
    key: str
    video: str  # name of the clip
    question: str  # as the data set has it, without the options
    references: tuple[str, ...]
    options: tuple[str, ...]
    kind: str
    prediction: str | None  # None: the clip cannot be read, or the question not be asked
    chosen: int | None  # of the options, in a choice; None: the answer names none
    frames: tuple[int, ...]  # numbers of the frames that the model saw
    error: str | None = None


def predictions_digest(predictions: Iterable[Prediction]) -> str:
    """sha256 of predictions, whatever their order."""
    lines = [_line(one) for one in sorted(predictions, key=lambda one: one.index)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def difference(
    one: Header, other: Header, names: Collection[str], *, where: tuple[str, str] = ("there", "here")
) -> str:
    """Which of these fields are not the same in two headers, in words; empty: none.

    Args:
        one: a header.
        other: another one.
        names: of the fields.
        where: what to call the places of the two.
    """
    values, others = json.loads(_line(one)), json.loads(_line(other))
    return "; ".join(
        f"{name} is {_shown(values[name])} {where[0]} and {_shown(others[name])} {where[1]}"
        for name in names
        if values[name] != others[name]
    )


def finished(path: Path, header: Header) -> list[Prediction] | None:
    """The predictions of a file in which nothing is left to do, so that the model need not be opened.

    Args:
        path: its place.
        header: of this run; ``computed`` and ``versions``, which only an opened model tells, do not matter.

    Returns:
        One for each question, in their order; None if there is something to do, or to complain about, for
        ``PredictionFile``.
    """
    if not path.is_file():
        return None
    try:
        written, predictions = read_predictions(path)
    except ConfigError:
        return None
    same = replace(header, computed=written.computed, versions=written.versions) == written
    is_done = len({one.index for one in predictions if one.error is None}) == header.num_samples
    return sorted(predictions, key=lambda one: one.index) if same and is_done else None


class PredictionFile:
    """The file of one run. ``open`` it, then ``append``.

    Args:
        path: its place.
        header: of this run.
    """

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self._header = path, header

    def start(self, *, force: bool = False) -> dict[int, Prediction]:
        """Makes the file ready to be added to; returns the predictions that it has already, by index.

        Those that failed are not among them, so that they are tried again.

        Args:
            force: whether predictions of something else are replaced.

        Raises:
            UsageError: the file has predictions of something else.
            ConfigError: it is something else.
            ArtifactError: it cannot be written.
        """
        done: dict[int, Prediction] = {}
        header = self._header
        if self.path.exists() and not force:
            written, predictions = read_predictions(self.path)
            differs = difference(written, header, _DECIDES)
            if differs:
                raise UsageError(
                    f"{self.path} has predictions of something else: {differs}",
                    remedy="choose another folder, or replace them with `force=True`",
                )
            header = written
            done = {one.index: one for one in predictions if one.error is None}
        lines = [_line(header), *(_line(done[index]) for index in sorted(done))]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, "".join(lines))
        except OSError as error:
            raise ArtifactError(f"{self.path} cannot be written: {error}; choose another folder") from error
        return done

    @contextmanager
    def appending(self) -> Iterator[_Appender]:
        """Gives what adds predictions; each batch is on disk when its call returns."""
        with self.path.open("a", encoding="utf-8") as file:
            yield _Appender(file)


class _Appender:
    def __init__(self, file: IO[str]) -> None:
        self._file = file

    def add(self, predictions: Iterable[Prediction]) -> None:
        """Adds a batch."""
        self._file.write("".join(map(_line, predictions)))
        self._file.flush()


def read_predictions(path: Path) -> tuple[Header, list[Prediction]]:
    """The header and the predictions of a file, in the file's order, without a last line that was cut.

    Raises:
        ConfigError: it is not such a file; the message names the line.
    """
    try:
        complete = complete_lines(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    if not complete:
        raise ConfigError(f"{path} has no header; it is no file of predictions, delete it")
    header = from_dict(Header, _object(path, 1, complete[0]), f"{path}, line 1")
    if header.schema != _VERSION:
        raise ConfigError(f"{path} has schema {header.schema}; this version reads {_VERSION}; make it anew")
    return header, [
        from_dict(Prediction, _object(path, number, line), f"{path}, line {number}")
        for number, line in enumerate(complete[1:], 2)
    ]


def _object(path: Path, number: int, line: str) -> Mapping[str, Any]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}, line {number} is not JSON ({error}); delete the line, or the file") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path}, line {number} is not a JSON object; delete the line, or the file")
    return value


def _line(record: Header | Prediction) -> str:
    return json.dumps(asdict(record), ensure_ascii=False, allow_nan=False) + "\n"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
