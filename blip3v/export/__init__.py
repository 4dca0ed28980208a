"""From a model folder to a bundle: two ONNX graphs, checked against PyTorch before anyone gets them."""

from blip3v.export.pipeline import ExportResult, export_bundle
from blip3v.export.source import (
    ExportSource,
    folder_source,
    new_encoder_source,
    random_source,
    random_weights,
    resolve_source,
)

__all__ = [
    "ExportResult",
    "ExportSource",
    "export_bundle",
    "folder_source",
    "new_encoder_source",
    "random_source",
    "random_weights",
    "resolve_source",
]
