"""Options that several verbs share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from blip3v.runtime.backends import AUTO, backend_names

__all__ = ["BACKEND_HELP", "backend_option", "video_options"]

BACKEND_HELP = f"{', '.join((AUTO, *backend_names()))}, or one for each graph: video_encoder=NAME,decoder=NAME"

backend_option = click.option("--backend", default=AUTO, show_default=True, help=f"Inference engine: {BACKEND_HELP}.")

_VIDEO_OPTIONS = (
    click.option("--fps", type=float, help="Frame rate of a folder of images, or of an image: gives them times."),
    click.option("--allow-url", is_flag=True, help="Download VIDEO if it is an http or https URL."),
    click.option(
        "--allow-private-url", is_flag=True, help="With --allow-url: from this machine and local networks too."
    ),
)


def video_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options on how a video is read: ``fps``, ``allow_url`` and ``allow_private_url``."""
    for option in reversed(_VIDEO_OPTIONS):
        command = option(command)
    return command
