"""Strict JSON for frozen dataclasses: unknown and missing keys are errors, and a misspelt one gets a suggestion."""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from blip3v.errors import ConfigError

T = TypeVar("T")


def read_json(path: Path) -> dict[str, Any]:
    """Reads one JSON object.

    Raises:
        ConfigError: the file is not JSON, has a duplicate key, NaN or infinity, or is not an object.
    """
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} contains a {type(value).__name__}; a JSON object is expected")
    return value


def read_json_value(path: Path) -> Any:
    """Reads one JSON value of any kind.

    Raises:
        ConfigError: the file is not JSON, or has a duplicate key, NaN, infinity or a lone surrogate.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    return parse_json(text, str(path))


def parse_json(text: str, where: str) -> Any:
    """Parses one JSON value of any kind.

    Args:
        text: the JSON.
        where: what to call it in errors.

    Raises:
        ConfigError: it is not JSON, or has a duplicate key, NaN, infinity or a lone surrogate.
    """
    try:
        value = json.loads(text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")  # an escape may stand for half a character
        return value
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or too long a number
        raise ConfigError(f"{where} cannot be read as JSON: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def dumps(value: object) -> str:
    """JSON in the one format that blip3v writes: indented, keys in the given order, a newline at the end."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_dict(cls: type[T], values: object, where: str) -> T:
    """Builds the dataclass ``cls`` from ``values``, recursively and strictly.

    Args:
        cls: a dataclass whose fields are scalars, tuples, enums of str, optional values or dataclasses.
        values: the parsed JSON.
        where: what to call it in errors, for example ``config.json``.

    Raises:
        ConfigError: an unknown key, a missing key, a value of the wrong type, or one that ``cls`` rejects.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} is {values!r}; an object with the keys of {cls.__name__} is expected")
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(fields)}"
            raise ConfigError(f"{where} has the unknown key {key!r}; {hint}")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _value(hints[name], values[name], f"{where}: {name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where} lacks the key {name!r}")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ConfigError(f"the key {key!r} appears twice")
        result[key] = value
    return result


def _no_constant(name: str) -> Any:
    raise ConfigError(f"{name} is not a JSON number")


def _value(hint: Any, value: Any, where: str) -> Any:
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return _union(typing.get_args(hint), value, where)
    if origin is typing.Literal:
        if value not in typing.get_args(hint):
            raise ConfigError(f"{where} is {value!r}; allowed: {', '.join(map(str, typing.get_args(hint)))}")
        return value
    if origin is tuple:
        return _tuple(typing.get_args(hint), value, where)
    if origin is dict:
        _expect(value, dict, where)
        return {key: _value(typing.get_args(hint)[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast(type, hint), value, where)
    if hint is Any:
        return value
    return _scalar(hint, value, where)


def _union(options: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    problems = []
    for option in options:
        if option is not type(None):
            try:
                return _value(option, value, where)
            except ConfigError as error:
                problems.append(error)
    raise problems[0]


def _tuple(options: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    _expect(value, (list, tuple), where)
    if len(options) == 2 and options[1] is Ellipsis:
        return tuple(_value(options[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if len(value) != len(options):
        raise ConfigError(f"{where} has {len(value)} values; {len(options)} are expected")
    return tuple(_value(hint, item, f"{where}[{i}]") for i, (hint, item) in enumerate(zip(options, value, strict=True)))


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise ConfigError(f"{where} is too large for a float") from error
    if hint is not bool and isinstance(value, bool):
        raise ConfigError(f"{where} is {value!r}; {hint.__name__} is expected")
    _expect(value, hint, where)
    return value


def _expect(value: object, kinds: Any, where: str) -> None:
    if not isinstance(value, kinds):
        name = getattr(kinds, "__name__", "list")
        raise ConfigError(f"{where} is {value!r}; {name} is expected")
