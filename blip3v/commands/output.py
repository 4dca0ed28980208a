"""What several verbs print and write: talk on stderr, the folder they made, the next command, a JSON file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import click
from rich.console import Console

from blip3v.errors import UsageError
from blip3v.publishing import check_writable, write_file
from blip3v.strict_json import dumps
from blip3v.units import format_bytes, format_duration

__all__ = [
    "Made",
    "check_file",
    "is_quiet",
    "made_line",
    "print_made",
    "quiet_option",
    "talk",
    "talk_console",
    "talk_of_downloads",
    "write_json",
]

_QUIET = "blip3v.quiet"


class Made(Protocol):
    """A folder that a verb made, and what that took."""

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def size_bytes(self) -> int: ...  # noqa: D102

    @property
    def seconds(self) -> float: ...  # noqa: D102

    @property
    def peak_rss_bytes(self) -> int | None: ...  # noqa: D102


def _set_quiet(context: click.Context, option: click.Parameter, quiet: bool) -> None:
    context.meta[_QUIET] = quiet


quiet_option = click.option(
    "-q",
    "--quiet",
    is_flag=True,
    expose_value=False,
    callback=_set_quiet,
    help="Print the result and errors only: no progress, no timings, no hints.",
)


def talk(text: str) -> None:
    """Prints a line of talk (progress, timings, hints) to stderr, unless the command runs with --quiet."""
    if not is_quiet():
        click.echo(text, err=True)


def talk_console() -> Console:
    """The rich form of ``talk``: a console on stderr that prints nothing with --quiet."""
    return Console(stderr=True, highlight=False, quiet=is_quiet())


@contextmanager
def talk_of_downloads() -> Iterator[None]:
    """Makes the progress of a video's download, which the library logs, talk while the block runs."""
    logger, handler = logging.getLogger("blip3v.video.download"), _TalkHandler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


class _TalkHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        talk(record.getMessage())


def is_quiet() -> bool:
    """Whether the command runs with --quiet."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.meta.get(_QUIET))


def print_made(made: Made, next_command: str, *, as_json: bool, **further: Any) -> None:
    """Prints what a verb made: a line and the next command, or one JSON object that includes the ``further`` values."""
    if as_json:
        values: dict[str, Any] = {
            "output": str(made.path),
            **further,
            "size_bytes": made.size_bytes,
            "seconds": round(made.seconds, 2),
            "peak_rss_bytes": made.peak_rss_bytes,
            "next": next_command,
        }
        click.echo(dumps(values), nl=False)
        return
    click.echo(made_line(made.path, made.size_bytes, made.seconds, made.peak_rss_bytes))
    talk(f"next: {next_command}")


def made_line(path: Path | str, size_bytes: int, seconds: float, peak_rss_bytes: int | None) -> str:
    """What was made where, in one line: its size, and what that took."""
    peak = "" if peak_rss_bytes is None else f", peak memory {format_bytes(peak_rss_bytes)}"
    return f"{path}: {format_bytes(size_bytes)}, {format_duration(seconds)}{peak}"


def check_file(output: Path | None, *, force: bool, option: str = "--output") -> None:
    """Checks ``--output FILE`` and ``--force`` before the work starts.

    Args:
        output: the file; None: not asked for.
        force: whether it may be overwritten.
        option: that names the file.

    Raises:
        UsageError: the file exists and may not be overwritten, or cannot be written.
    """
    if output is None:
        if force:
            raise UsageError(f"--force has no effect without {option}")
        return
    if output.exists() and not (force and output.is_file()):
        hint = "choose another file or add --force" if output.is_file() else "choose a file"
        raise UsageError(f"{output} exists; {hint}")
    if not output.parent.is_dir():
        raise UsageError(f"{output.parent} is not a folder; choose {option} in an existing folder")
    check_writable(output)


def write_json(values: Mapping[str, Any], output: Path) -> None:
    """Writes a JSON file atomically."""
    write_file(output, dumps(values))
