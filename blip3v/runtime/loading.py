"""From a bundle on disk to an ``Engine``: checks first, then the sessions."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from blip3v.bundle.graph_io import GraphIO, decoder_io, video_encoder_io
from blip3v.bundle.onnx_refs import external_locations
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError, UsageError
from blip3v.runtime import cpu_rules, memory
from blip3v.runtime.decoder import PREFILL_CHUNK, Decoder
from blip3v.runtime.encoder import VideoEncoder
from blip3v.runtime.engine import Engine
from blip3v.runtime.kv_cache import round_capacity
from blip3v.runtime.ort import Graph, check_device, open_graph
from blip3v.video.limits import VideoLimits

__all__ = ["OpenEstimate", "encoder_hash", "estimate_open", "open_engine"]

# What ONNX Runtime and the tokenizer take beside weights and cache.
_FIXED_BYTES = 192 * 2**20
# Activations at their widest, in values: a prefill chunk's gate and up, or attention scores and MLP of a clip's frames.
_WIDENED_BYTES = 4
# Question and answer of an ordinary request, tokens.
_USUAL_TOKENS = 256
# From here on, opening takes long enough to say so first.
_LARGE_BYTES = 2**30
# Widening fp16 weights on one core of a server; reading what is mapped costs nothing yet.
_OPEN_S, _WIDEN_S_PER_GIB = 0.5, 5.2


@dataclass(frozen=True, kw_only=True)
class OpenEstimate:
    """What opening a bundle and asking an ordinary question takes, roughly."""

    memory_bytes: int  # that must be free; mapped files, which the system can drop, are not counted
    free_bytes: int | None  # what is free now; None where the system does not tell
    seconds: float  # of opening

    @property
    def is_large(self) -> bool:
        """Whether opening takes long enough to say so first."""
        return self.memory_bytes >= _LARGE_BYTES

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f" of {memory.format_bytes(self.free_bytes)} that are free"
        return f"about {memory.format_bytes(self.memory_bytes)} of memory{free}, {self.seconds:.0f} s"


def open_engine(
    path: str | os.PathLike[str],
    *,
    device: str,
    threads: int | None,
    max_context: int | None,
    limits: VideoLimits,
    allow_random: bool,
    on_estimate: Callable[[OpenEstimate], None],
) -> Engine:
    """Opens a bundle; see ``VideoLM.open``."""
    _check_count("threads", threads)
    check_device(device)
    bundle = open_bundle(Path(path))
    if bundle.manifest.source.random_init and not allow_random:
        raise UsageError(
            f"{bundle.path} holds random weights, made for measurements: its answers mean nothing; "
            "to run it anyway use --allow-random (in Python: allow_random=True)"
        )
    config = _with_context(bundle.config, max_context)
    needed = estimate_open(bundle, max_context)
    on_estimate(needed)
    memory.require(needed.memory_bytes, f"opening {bundle.path}", "free some, or use a smaller model")
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
        backend=cpu_rules.stored_and_computed(bundle.manifest.precision),
    )


def estimate_open(bundle: Bundle, max_context: int | None = None) -> OpenEstimate:
    """The estimate for the bundle with the cache of one ordinary request; the embedding table is mapped.

    Raises:
        UsageError: ``max_context`` is no count that the bundle allows.
    """
    manifest, config = bundle.manifest, _with_context(bundle.config, max_context)
    capacity = round_capacity(manifest.num_video_tokens + _USUAL_TOKENS, config.text.max_context)
    kept_bytes = cpu_rules.bundle_resident_bytes(manifest) + capacity * manifest.kv.bytes_per_token
    graphs = manifest.precision.graphs.items()
    widened_bytes = sum(cpu_rules.widened_bytes(manifest.weights_bytes(name), spec) for name, spec in graphs)
    return OpenEstimate(
        memory_bytes=_FIXED_BYTES + kept_bytes + _activation_bytes(config),
        free_bytes=memory.available_bytes(),
        seconds=_OPEN_S + _WIDEN_S_PER_GIB * widened_bytes / 2**30,
    )


def _activation_bytes(config: ModelConfig) -> int:
    """The widest activations of one clip or of one chunk of a prompt, whichever is more."""
    vision, text = config.vision, config.text
    clip_tokens = config.num_frames * vision.num_patches
    of_a_clip = clip_tokens * (2 * vision.intermediate_size + vision.num_heads * vision.num_patches)
    of_a_chunk = PREFILL_CHUNK * (4 * text.intermediate_size + text.num_heads * PREFILL_CHUNK)
    return _WIDENED_BYTES * max(of_a_clip, of_a_chunk)


def _with_context(config: ModelConfig, max_context: int | None) -> ModelConfig:
    """``config`` with a context of at most ``max_context`` tokens."""
    _check_count("max_context", max_context)
    own = config.text.max_context
    if max_context is None:
        return config
    if max_context > own:
        raise UsageError(f"max_context is {max_context}; the model's context has {own}, ask for no more")
    return dataclasses.replace(config, text=dataclasses.replace(config.text, max_context=max_context))


def _check_count(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise UsageError(f"{name} is {value!r}; a whole number of at least 1 is expected")


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
    precision = bundle.manifest.precision.graphs[name]
    mapped = cpu_rules.use_mmap(weight_bytes, precision)
    graph = open_graph(bundle.graph_path(name), io, threads=threads, mapped=mapped)
    if graph.compute.name != precision.io:
        raise ArtifactError(
            f"{bundle.graph_path(name)} is {graph.compute} and its manifest says {precision.io}; export it again"
        )
    return graph
