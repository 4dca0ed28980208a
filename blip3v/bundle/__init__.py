"""The bundle: what it contains, how it is written atomically, and how it is read without being trusted."""

from blip3v.bundle.card import render_card
from blip3v.bundle.embeddings import write_embeddings
from blip3v.bundle.graph_io import GraphIO, TensorSpec, decoder_io, video_encoder_io
from blip3v.bundle.manifest import (
    GraphEntry,
    KVGeometry,
    Limits,
    Manifest,
    Source,
    WeightCount,
)
from blip3v.bundle.precision import GraphPrecision, Precision
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.verify import VerifyReport, verify_bundle
from blip3v.bundle.writer import BundleWriter

__all__ = [
    "Bundle",
    "BundleWriter",
    "GraphEntry",
    "GraphIO",
    "GraphPrecision",
    "KVGeometry",
    "Limits",
    "Manifest",
    "Precision",
    "Source",
    "TensorSpec",
    "VerifyReport",
    "WeightCount",
    "decoder_io",
    "open_bundle",
    "render_card",
    "verify_bundle",
    "video_encoder_io",
    "write_embeddings",
]
