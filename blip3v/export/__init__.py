"""From a model folder to a bundle: two ONNX graphs, checked against PyTorch before they are published.

Names are imported on first use, so that the command line can show its help without PyTorch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip3v.export.pipeline import ExportResult, export_bundle
    from blip3v.export.source import (
        ExportSource,
        folder_source,
        new_encoder_source,
        random_source,
        resolve_source,
    )

__all__ = [
    "ExportResult",
    "ExportSource",
    "export_bundle",
    "folder_source",
    "new_encoder_source",
    "random_source",
    "resolve_source",
]

_PIPELINE = ("ExportResult", "export_bundle")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'blip3v.export' has no attribute {name!r}")
    module = "pipeline" if name in _PIPELINE else "source"
    return getattr(importlib.import_module(f"blip3v.export.{module}"), name)
