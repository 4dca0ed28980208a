"""Options that several verbs share."""

from __future__ import annotations

import click

from blip3v.bundle.precision import PRECISIONS
from blip3v.runtime.backends import AUTO, backend_names

__all__ = ["BACKEND_HELP", "PRECISION_HELP", "backend_option"]

BACKEND_HELP = f"{', '.join((AUTO, *backend_names()))}, or one for each graph: video_encoder=NAME,decoder=NAME"

PRECISION_HELP = (
    f"{' or '.join(PRECISIONS)}, or one for each graph, as in video_encoder=fp32,decoder=fp16. fp16 is half the size "
    "and what GPUs and NPUs compute in; fp32 is for debugging, and opens at once on a CPU, which has to widen fp16."
)

backend_option = click.option("--backend", default=AUTO, show_default=True, help=f"Inference engine: {BACKEND_HELP}.")
