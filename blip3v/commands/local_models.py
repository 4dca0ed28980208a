"""Models that an option or argument names by path or by hub id."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from blip3v.commands.output import is_quiet, talk
from blip3v.commands.program import command_line
from blip3v.hub import Download, HubId, HubKind, resolve

__all__ = ["MODEL_PATH", "download_option", "local_model"]

_DOWNLOAD = "blip3v.download"


class _ModelPath(click.Path):
    """A path, in which what was typed as one (./runs/model, runs/model/) stays one and is no hub id."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        is_typed_as_path = HubId.parse(str(value)) is None and HubId.parse(path.as_posix()) is not None
        return path.absolute() if is_typed_as_path and not os.path.exists(path) else path


MODEL_PATH = _ModelPath(path_type=Path)


def _set_download(context: click.Context, option: click.Parameter, download: bool) -> None:
    context.meta[_DOWNLOAD] = download


download_option = click.option(
    "--download",
    is_flag=True,
    expose_value=False,
    callback=_set_download,
    help="Download a model named by its hub id without asking.",
)


def local_model(name: Path, kind: HubKind | None = "bundle") -> Path:
    """The local path of a model that an option or argument names: a path, or a hub id (``blip3v.hub``).

    For a command with ``download_option``. What has to be downloaded is downloaded if --download was given, or if the
    user at the terminal agrees.

    Args:
        name: as typed.
        kind: what the command needs; None: it takes both.

    Raises:
        ArtifactMissingError: not there and not to be downloaded, or not on the hub.
        ArtifactError: of the other kind, no connection, not enough disk space, or a broken cache.
    """
    return resolve(name, kind=kind, download=_permission(name), progress=not is_quiet(), remedy=_how_to_get(name, kind))


def _permission(name: Path) -> bool | Callable[[Download], bool]:
    if click.get_current_context().meta.get(_DOWNLOAD):
        return _announce
    # In a folder that exists, the name is a mistyped path: the hub, which the question needs, must not be asked for it.
    is_interactive = sys.stdin.isatty() and sys.stderr.isatty()
    return _ask if is_interactive and not name.parent.is_dir() else False


def _announce(planned: Download) -> bool:
    talk(str(planned))
    return True


def _ask(planned: Download) -> bool:
    return click.confirm(f"{planned}\nDownload it?", err=True)


def _how_to_get(name: Path, kind: HubKind | None) -> str:
    """What to run: the command as it was typed, with --download. Only the hub knows whether that is a bundle."""
    typed = command_line(*sys.argv[1:], "--download")
    if kind != "bundle":
        return f"to download it run: {typed}"
    export = command_line("export", "-m", name.as_posix(), "--download")
    return f"to download it, if it is a bundle, run: {typed}; to make a bundle of a checkpoint run: {export}"
