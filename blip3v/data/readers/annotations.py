"""Annotation files as records with checked fields: what all readers share, whatever the file's format.

Fields that a reader does not ask for may be there: authors add some from one release to the next.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from blip3v.data.records import DataSet
from blip3v.errors import ConfigError, UsageError
from blip3v.strict_json import parse_json, read_json, read_json_value

__all__ = [
    "Record",
    "annotation_file",
    "check_root",
    "check_split",
    "csv_records",
    "json_lines",
    "json_records",
    "text_lines",
]

_MAX_FIELD_CHARS = 1 << 20  # of a csv cell: dense captions are longer than the module's own limit


@dataclass(frozen=True)
class Record:
    """One record of an annotation file.

    Attributes:
        values: its fields.
        where: what to call it in errors, such as ``/data/msrvtt/test_qa.json: record 3``; records count from 0.
    """

    values: Mapping[str, Any]
    where: str

    def text(self, field: str, *, empty: bool = False) -> str:
        """A field that holds text, without white space around it; a number is shown as JSON does.

        Raises:
            ConfigError: the field is missing or something else, or has no text and ``empty`` is false.
        """
        value = self._value(field)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self._wrong(field, "text is expected")
        text = str(value).strip()
        if not text and not empty:
            raise self._wrong(field, "text is expected")
        return text

    def number(self, field: str) -> float:
        """A field that holds a finite number, in JSON or written out in a csv file.

        Raises:
            ConfigError: the field is missing or something else.
        """
        value = self._value(field)
        try:
            number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else None
        except (ValueError, OverflowError):
            number = None
        if number is None or not math.isfinite(number):
            raise self._wrong(field, "a number is expected")
        return number

    def index(self, field: str, count: int) -> int:
        """A field that holds a whole number from 0 to ``count`` - 1.

        Raises:
            ConfigError: the field is missing or something else.
        """
        number = self.number(field)
        if number != int(number) or not 0 <= number < count:
            raise self._wrong(field, f"a whole number from 0 to {count - 1} is expected")
        return int(number)

    def key(self, field: str, *, default: str) -> str:
        """What names the record, or ``default`` if the file gives no name.

        Raises:
            ConfigError: the field holds neither text nor a number.
        """
        return self.text(field) if field in self.values else default

    def _value(self, field: str) -> Any:
        if self.values.get(field) is None:
            raise ConfigError(f"{self.where} lacks the field {field!r}; it has {', '.join(map(str, self.values))}")
        return self.values[field]

    def _wrong(self, field: str, expected: str) -> ConfigError:
        shown = repr(self.values[field])
        shown = shown if len(shown) <= 80 else f"{shown[:77]}..."
        return ConfigError(f"{self.where}: {field} is {shown}; {expected}")


def check_split(data_set: DataSet, split: str) -> None:
    """Checks that the data set has this split.

    Raises:
        UsageError: it has not.
    """
    if split not in data_set.splits:
        raise UsageError(f"{data_set.name} has no split {split!r}; allowed: {', '.join(data_set.splits)}")


def annotation_file(data_set: DataSet, root: Path, split: str, *names: str) -> Path:
    """The annotation file of a data set: the first of ``names`` that is there.

    Args:
        data_set: says in errors what to get and from whom.
        root: the data set's folder.
        split: that is read.
        names: of the file under ``root``; several where it is published under several names.

    Raises:
        UsageError: there is none, or no such folder.
    """
    check_root(data_set, root, split)
    for name in names:
        if (root / name).is_file():
            return root / name
    about = data_set.about
    raise UsageError(f"{root} contains no {' or '.join(names)} for the split {split}; {about.how_to_get(split)}")


def check_root(data_set: DataSet, root: Path, split: str) -> None:
    """Checks that the folder of a data set is there.

    Raises:
        UsageError: it is not; the message says what to get, from whom, and where it must lie.
    """
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; {data_set.about.how_to_get(split)}")


def json_records(path: Path, field: str = "") -> list[Record]:
    """The records of a JSON list.

    Args:
        path: the file.
        field: of the JSON object that holds the list; empty: the file is the list.

    Raises:
        ConfigError: the file is not such a list of objects.
    """
    values = read_json(path).get(field) if field else read_json_value(path)
    if not isinstance(values, list):
        where = f"{path}: {field}" if field else str(path)
        raise ConfigError(f"{where} is not a list; a JSON list of records is expected")
    name = f"{field}[{{}}]" if field else "record {}"
    return [_record(value, f"{path}: {name.format(index)}") for index, value in enumerate(values)]


def json_lines(path: Path) -> Iterator[Record]:
    """The records of a file with one JSON object a line; empty lines are left out.

    Raises:
        ConfigError: a line is not a JSON object, or the file cannot be read.
    """
    for line, where in text_lines(path):
        yield _record(parse_json(line, where), where)


def text_lines(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a text file without white space around them, each with what to call it; empty ones are left out.

    Raises:
        ConfigError: the file cannot be read as UTF-8.
    """
    try:
        with path.open(encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield line.strip(), f"{path}: line {number}"
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as text: {error}") from error


def csv_records(path: Path, *, delimiter: str = ",", is_quoted: bool = True) -> Iterator[Record]:
    """The records of a csv file whose first line names the columns; rows without any text are left out.

    Args:
        path: the file.
        delimiter: between cells.
        is_quoted: whether a cell may stand in double quotes, which then are not part of it.

    Raises:
        ConfigError: a row has more or fewer cells than there are columns, or the file cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            csv.field_size_limit(max(csv.field_size_limit(), _MAX_FIELD_CHARS))  # one for the whole process
            quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE
            rows = csv.reader(lines, delimiter=delimiter, strict=True, quoting=quoting)
            columns = next(rows, None)
            if columns is None:
                raise ConfigError(f"{path} is empty; a line with the columns' names is expected")
            for index, cells in enumerate(row for row in rows if any(row)):
                where = f"{path}: record {index}"
                if len(cells) != len(columns):
                    raise ConfigError(f"{where} has {len(cells)} cells; {len(columns)} are expected, as in line 1")
                yield Record(dict(zip(columns, cells, strict=True)), where)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as csv: {error}") from error


def _record(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise ConfigError(f"{where} is not an object; a JSON object is expected")
    return Record(value, where)
