"""Options that several verbs share."""

from __future__ import annotations

import click

from blip3v.runtime.backends import AUTO, backend_names

__all__ = ["BACKEND_HELP", "backend_option"]

BACKEND_HELP = f"{', '.join((AUTO, *backend_names()))}, or one for each graph: video_encoder=NAME,decoder=NAME"

backend_option = click.option("--backend", default=AUTO, show_default=True, help=f"Inference engine: {BACKEND_HELP}.")
