"""From a bundle on disk to an opened ``Model``: checks first, then the estimate, then the two graphs."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blip3v.bundle import layout
from blip3v.bundle.graph_io import decoder_io, video_encoder_io
from blip3v.bundle.hub_links import real_files
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import UsageError
from blip3v.runtime import memory
from blip3v.runtime.backends import (
    AUTO,
    GRAPHS,
    PREFILL_CHUNK,
    Backend,
    Decoder,
    GraphFile,
    GraphName,
    VideoEncoder,
    choose_backend,
    parse_backends,
)
from blip3v.runtime.cache_budget import CacheBudget, default_limit
from blip3v.runtime.checks import is_whole, shown
from blip3v.runtime.request import Model
from blip3v.runtime.types import BackendReport
from blip3v.units import format_bytes, format_duration
from blip3v.video.limits import VideoLimits

__all__ = ["OpenEstimate", "check_threads", "encoder_hash", "estimate_open", "graph_files", "open_model"]

# Memory of the engines and the tokenizer, without weights and cache.
_FIXED_BYTES = 192 * 2**20
# Activations at their widest, in values: a prefill chunk's gate and up, or attention scores and MLP of a clip's frames.
_WIDENED_BYTES = 4
# Question and answer of an ordinary request, tokens.
_USUAL_TOKENS = 256
# A model of this size takes long enough to open to say so first.
_LARGE_BYTES = 2**30
# Of opening, whatever the size.
_OPEN_S = 0.5


@dataclass(frozen=True, kw_only=True)
class OpenEstimate:
    """Rough cost of opening a bundle and asking an ordinary question."""

    backend: BackendReport  # what would compute it
    memory_bytes: int  # that must be free; mapped files, which the system can drop, are not counted
    free_bytes: int | None  # what is free now; None if the system does not say
    seconds: float  # of opening

    @property
    def is_large(self) -> bool:
        """Whether opening takes long enough to say so first."""
        return self.memory_bytes >= _LARGE_BYTES

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f" of {format_bytes(self.free_bytes)} that are free"
        return f"about {format_bytes(self.memory_bytes)} of memory{free}, {format_duration(self.seconds)}"


def open_model(
    path: str | os.PathLike[str],
    *,
    backend: str,
    device: str,
    threads: int | None,
    max_context: int | None,
    max_cache_bytes: int | None,
    limits: VideoLimits,
    allow_random: bool,
    on_estimate: Callable[[OpenEstimate], None],
) -> Model:
    """Opens a bundle; see ``VideoLM.open``."""
    check_threads(threads)
    _check_count("max_cache_bytes", max_cache_bytes)
    bundle = open_bundle(Path(path))
    backends = _choose(backend, device, bundle)
    if bundle.manifest.source.random_init and not allow_random:
        raise UsageError(
            f"{bundle.path} holds random weights, made for measurements: its answers mean nothing",
            remedy="to run it anyway pass `allow_random=True`",
        )
    config = _with_context(bundle.config, max_context)
    graphs = graph_files(bundle)
    needed = _estimate(bundle, config, graphs, backends)
    on_estimate(needed)
    memory.require(needed.memory_bytes, f"opening {bundle.path}", "free some, or use a smaller model")
    with real_files(bundle.path, [file for name in GRAPHS for file in bundle.graph_files(name)]) as folder:
        graphs = graph_files(bundle, folder)
        video_encoder, decoder = _open_graphs(backends, graphs, config.text, threads)
    token_bytes = backends["decoder"].kv_bytes_per_token(config.text, graphs["decoder"])
    context_bytes = config.text.max_context * token_bytes
    return Model(
        config=config,
        tokenizer=bundle.tokenizer,
        chat_template=bundle.chat_template,
        generation=bundle.generation,
        preprocessor=bundle.preprocessor,
        limits=limits,
        table_VD=bundle.embeddings(),
        video_encoder=video_encoder,
        decoder=decoder,
        caches=CacheBudget(max_cache_bytes or default_limit(memory.available_bytes(), context_bytes), token_bytes),
        encoder_hash=encoder_hash(bundle),
        backend=BackendReport(
            stored=bundle.manifest.precision.name, video_encoder=video_encoder.execution, decoder=decoder.execution
        ),
    )


def _open_graphs(
    backends: Mapping[GraphName, Backend], graphs: Mapping[GraphName, GraphFile], text: TextConfig, threads: int | None
) -> tuple[VideoEncoder, Decoder]:
    """Opens both graphs at the same time, since engines do parts of opening with a single thread.

    If one fails, the other is closed.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="blip3v-open") as pool:
        opening = pool.submit(backends["video_encoder"].open_video_encoder, graphs["video_encoder"], threads=threads)
        try:
            decoder = backends["decoder"].open_decoder(graphs["decoder"], text, threads=threads)
        except BaseException:
            if opening.exception() is None:
                opening.result().close()
            raise
        try:
            return opening.result(), decoder
        except BaseException:
            decoder.close()
            raise


def estimate_open(
    bundle: Bundle, *, max_context: int | None = None, backend: str = AUTO, device: str = AUTO
) -> OpenEstimate:
    """The estimate for the bundle with the cache of one ordinary request; see ``VideoLM.estimate``."""
    config = _with_context(bundle.config, max_context)
    return _estimate(bundle, config, graph_files(bundle), _choose(backend, device, bundle))


def graph_files(bundle: Bundle, folder: Path | None = None) -> dict[GraphName, GraphFile]:
    """Both graphs of a bundle, as back ends open them; ``folder`` holds their files, None: the bundle does."""
    config, manifest = bundle.config, bundle.manifest
    ios = {"video_encoder": video_encoder_io(config, manifest.target), "decoder": decoder_io(config, manifest.target)}
    return {
        name: GraphFile(
            path=(folder or bundle.path) / manifest.graphs[name].file,
            io=ios[name],
            precision=manifest.precision.graphs[name],
            weights_bytes=sum(manifest.files[file].size_bytes for file in bundle.graph_files(name)),
            digest=graph_hash(bundle, name),
            engines=bundle.path / layout.ENGINES,
        )
        for name in GRAPHS
    }


def _choose(backend: str, device: str, bundle: Bundle) -> dict[GraphName, Backend]:
    precisions = bundle.manifest.precision.graphs
    return {
        graph: choose_backend(name, graph, device, bundle.manifest.target, precisions[graph])
        for graph, name in parse_backends(backend).items()
    }


def _estimate(
    bundle: Bundle,
    config: ModelConfig,
    graphs: Mapping[GraphName, GraphFile],
    backends: Mapping[GraphName, Backend],
) -> OpenEstimate:
    """Weights, the cache of an ordinary request and the widest activations; the embedding table is mapped."""
    num_tokens = min(bundle.manifest.num_video_tokens + _USUAL_TOKENS, config.text.max_context)
    cache_bytes = num_tokens * backends["decoder"].kv_bytes_per_token(config.text, graphs["decoder"])
    weights_bytes = sum(backends[name].resident_bytes(graph) for name, graph in graphs.items())
    executions = {name: backends[name].execution(graph.precision) for name, graph in graphs.items()}
    return OpenEstimate(
        backend=BackendReport(stored=bundle.manifest.precision.name, **executions),
        memory_bytes=_FIXED_BYTES + weights_bytes + cache_bytes + _activation_bytes(config),
        free_bytes=memory.available_bytes(),
        seconds=_OPEN_S + max(backends[name].open_s(graph) for name, graph in graphs.items()),
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
        raise UsageError(f"max_context is {shown(max_context)}; the model's context has {own}, ask for no more")
    return dataclasses.replace(config, text=dataclasses.replace(config.text, max_context=max_context))


def check_threads(threads: int | None) -> None:
    """Raises unless ``threads`` is a number of threads that an engine may use on this machine, or None.

    Raises:
        UsageError: it is below 1, or more than the machine's logical CPUs.
    """
    _check_count("threads", threads)
    num_cpus = os.cpu_count()
    if threads is not None and num_cpus is not None and threads > num_cpus:
        raise UsageError(
            f"threads is {shown(threads)}; this machine has {num_cpus} logical CPUs, at most as many are allowed",
            remedy="leave `threads` out for one thread on each physical core",
        )


def _check_count(name: str, value: object) -> None:
    if value is not None and not is_whole(value, 1):
        raise UsageError(f"{name} is {shown(value)}; a whole number of at least 1 is expected")


def encoder_hash(bundle: Bundle) -> str:
    """Hash (hex) of everything that the video encoder is made of: the graph and the files of its weights."""
    return graph_hash(bundle, "video_encoder")


def graph_hash(bundle: Bundle, name: GraphName) -> str:
    """Hash (hex) of the files of a graph, as the manifest lists them."""
    digest = hashlib.sha256()
    for file in bundle.graph_files(name):
        digest.update(f"{file} {bundle.manifest.files[file].sha256}\n".encode())
    return digest.hexdigest()
