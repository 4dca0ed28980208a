"""What several verbs say at their end: the folder that was made, and the next command."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Protocol

import click

from blip3v.bundle.manifest import Manifest
from blip3v.strict_json import dumps
from blip3v.units import format_bytes, format_duration

__all__ = ["Made", "after_export", "print_made"]


class Made(Protocol):
    """A folder that a verb made, and what making it took."""

    @property
    def path(self) -> Path: ...  # noqa: D102

    @property
    def size_bytes(self) -> int: ...  # noqa: D102

    @property
    def seconds(self) -> float: ...  # noqa: D102

    @property
    def peak_rss_bytes(self) -> int | None: ...  # noqa: D102


def print_made(made: Made, next_command: str, *, as_json: bool, **further: Any) -> None:
    """The end of a verb that makes a folder, on stdout: two lines, or one JSON object with ``further`` values."""
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
    peak = "" if made.peak_rss_bytes is None else f", peak memory {format_bytes(made.peak_rss_bytes)}"
    click.echo(f"{made.path}: {format_bytes(made.size_bytes)}, {format_duration(made.seconds)}{peak}")
    click.echo(f"next: {next_command}")


def after_export(manifest: Manifest, path: Path) -> str:
    """What to run on a bundle: untrained weights can only be measured."""
    folder = shlex.quote(str(path))
    if manifest.source.random_init or not manifest.source.trained:
        return f"blip3v bench {folder}"
    return f'blip3v ask VIDEO "QUESTION" -m {folder}'
