"""From a bundle on disk to an ``Engine``: checks first, then the sessions."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from blip3v.bundle.graph_io import GraphIO, decoder_io, video_encoder_io
from blip3v.bundle.manifest import DTYPES
from blip3v.bundle.onnx_refs import external_locations
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.errors import ArtifactError, UsageError
from blip3v.runtime import memory
from blip3v.runtime.decoder import Decoder
from blip3v.runtime.encoder import VideoEncoder
from blip3v.runtime.engine import Engine
from blip3v.runtime.kv_cache import round_capacity
from blip3v.runtime.ort import Graph, check_device, open_graph
from blip3v.video.limits import VideoLimits

__all__ = ["encoder_hash", "estimate_bytes", "open_engine"]

# What ONNX Runtime, the tokenizer and the activations of a prefill chunk take beside weights and cache.
_FIXED_BYTES = 192 * 2**20
# Question and answer of an ordinary request, tokens.
_USUAL_TOKENS = 256


def open_engine(
    path: str | os.PathLike[str], *, device: str, threads: int | None, limits: VideoLimits, allow_random: bool
) -> Engine:
    """Opens a bundle; see ``VideoLM.open``."""
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError(f"threads is {threads!r}; a whole number of at least 1 is expected")
    check_device(device)
    bundle = open_bundle(Path(path))
    if bundle.manifest.source.random_init and not allow_random:
        raise UsageError(
            f"{bundle.path} holds random weights, made for measurements: its answers mean nothing; "
            "to run it anyway use --allow-random (in Python: allow_random=True)"
        )
    memory.require(estimate_bytes(bundle), f"opening {bundle.path}", "free some, or use a smaller model")
    config = bundle.config
    decoder = _open(bundle, "decoder", decoder_io(config), threads)
    encoder = _open(bundle, "video_encoder", video_encoder_io(config), threads)
    return Engine(
        config=config,
        tokenizer=bundle.tokenizer,
        chat_template=bundle.chat_template,
        generation=bundle.generation,
        preprocessor=bundle.preprocessor,
        limits=limits,
        table=bundle.embeddings(),
        decoder=Decoder(decoder, config.text),
        encoder=VideoEncoder(encoder),
        encoder_hash=encoder_hash(bundle),
        backend=bundle.manifest.stored_and_computed,
    )


def estimate_bytes(bundle: Bundle) -> int:
    """Memory of the opened bundle with the cache of one ordinary request. The embedding table is mapped: it is free."""
    manifest = bundle.manifest
    capacity = round_capacity(manifest.num_tokens + _USUAL_TOKENS, manifest.limits.max_positions)
    return _FIXED_BYTES + manifest.memory.resident_bytes + capacity * manifest.kv.bytes_per_token


def encoder_hash(bundle: Bundle) -> str:
    """Hash (hex) of everything that the video encoder is made of: the graph and the files of its weights."""
    digest = hashlib.sha256()
    for name in _graph_files(bundle, "video_encoder"):
        digest.update(f"{name} {bundle.manifest.files[name].sha256}\n".encode())
    return digest.hexdigest()


def _graph_files(bundle: Bundle, graph: str) -> list[str]:
    locations = external_locations(bundle.graph_path(graph))
    return [bundle.manifest.graphs[graph].file, *(f"onnx/{location}" for location in sorted(set(locations)))]


def _open(bundle: Bundle, name: str, io: GraphIO, threads: int | None) -> Graph:
    weight_bytes = sum(bundle.manifest.files[file].size_bytes for file in _graph_files(bundle, name))
    graph = open_graph(bundle.graph_path(name), io, threads=threads, weight_bytes=weight_bytes)
    expected = DTYPES[bundle.manifest.precision]
    if graph.compute.name != expected:
        raise ArtifactError(
            f"{bundle.graph_path(name)} is {graph.compute} and its manifest says {expected}; export it again"
        )
    return graph
