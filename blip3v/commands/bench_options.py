"""Values of ``blip3v bench`` that click does not know."""

from __future__ import annotations

import re
from typing import Any

import click

__all__ = ["COUNTS", "PERCENT"]

_MOST = 1024  # of a batch or of requests at once


class _Counts(click.ParamType):  # type: ignore[type-arg]  # not generic in older versions of click
    """Different whole numbers from 1 up, separated by commas."""

    name = "counts"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):  # a default
            return value
        words = [word.strip() for word in str(value).split(",")]
        wrong = next(
            (word for word in words if not (word.isascii() and word.isdigit() and 1 <= int(word) <= _MOST)), None
        )
        if wrong is not None:
            self.fail(
                f"{wrong!r} is not a whole number from 1 to {_MOST}; write for example 1,2,4,8", parameter, context
            )
        counts = tuple(map(int, words))
        if len(set(counts)) < len(counts):
            self.fail(f"{value!r} names a number twice; name each once", parameter, context)
        return counts


COUNTS = _Counts()


class _Percent(click.ParamType):  # type: ignore[type-arg]  # as above
    """A share written as a percentage: ``10%`` is 0.1."""

    name = "percent"

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> float:
        if isinstance(value, float):  # a default
            return value
        found = re.fullmatch(r"(\d{1,4}(?:\.\d{1,4})?)\s*%", str(value).strip(), re.ASCII)
        if found is None:
            self.fail(f"{value!r} is not a percentage from 0% up; write for example 10%", parameter, context)
        return float(found[1]) / 100


PERCENT = _Percent()
