"""From a bundle on disk to an opened ``Model``: checks first, then the estimate, then the two graphs."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from blip3v.bundle import layout
from blip3v.bundle.hub_links import real_files
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.config import ModelConfig, TextConfig
from blip3v.errors import UsageError
from blip3v.runtime.backends import (
    AUTO,
    GRAPHS,
    Decoder,
    GraphFile,
    GraphName,
    VideoEncoder,
)
from blip3v.runtime.cache_budget import CacheBudget, default_limit
from blip3v.runtime.checks import is_whole, shown
from blip3v.runtime.estimate import OpenEstimate, estimate
from blip3v.runtime.request import Model
from blip3v.runtime.tuned import EngineChoice, choose_engines
from blip3v.runtime.types import BackendReport
from blip3v.video.limits import VideoLimits
from blip3v.video.spare_decoder import SpareDecoder

__all__ = ["check_threads", "encoder_hash", "estimate_open", "graph_files", "open_model"]


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
    spare_decoder: SpareDecoder,
) -> Model:
    """Opens a bundle; see ``VideoLM.open``. The model closes ``spare_decoder``; if this fails, the caller does."""
    check_threads(threads)
    _check_count("max_cache_bytes", max_cache_bytes)
    bundle = open_bundle(Path(path))
    engines = _choose(bundle, backend, device, threads)
    if bundle.manifest.source.random_init and not allow_random:
        raise UsageError(
            f"{bundle.path} holds random weights, made for measurements: its answers mean nothing",
            remedy="to run it anyway pass `allow_random=True`",
        )
    config = _with_context(bundle.config, max_context)
    graphs = graph_files(bundle)
    needed = _estimate(bundle, config, graphs, engines)
    on_estimate(needed)
    needed.require(f"opening {bundle.path}")
    with real_files(bundle.path, [file for name in GRAPHS for file in bundle.graph_files(name)]) as folder:
        graphs = graph_files(bundle, folder)
        video_encoder, decoder = _open_graphs(engines, graphs, config.text)
    context_bytes = (decoder.row_tokens or config.text.max_context) * decoder.token_bytes
    limit_bytes = max_cache_bytes or default_limit(decoder.memory.free_bytes(), context_bytes)
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
        caches=CacheBudget(limit_bytes, decoder.token_bytes, decoder.row_tokens),
        encoder_hash=encoder_hash(bundle),
        backend=BackendReport(
            stored=bundle.manifest.precision.name,
            video_encoder=video_encoder.execution,
            decoder=decoder.execution,
            tuning=engines.tuning,
        ),
        spare_decoder=spare_decoder,
    )


def _open_graphs(
    engines: EngineChoice, graphs: Mapping[GraphName, GraphFile], text: TextConfig
) -> tuple[VideoEncoder, Decoder]:
    """Opens both graphs at the same time, since engines do parts of opening with a single thread.

    If one fails, the other is closed.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="blip3v-open") as pool:
        threads = engines.threads
        opening = pool.submit(
            engines.backends["video_encoder"].open_video_encoder,
            graphs["video_encoder"],
            threads=threads["video_encoder"],
        )
        try:
            decoder = engines.backends["decoder"].open_decoder(graphs["decoder"], text, threads=threads["decoder"])
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
    return _estimate(bundle, config, graph_files(bundle), _choose(bundle, backend, device, None))


def _estimate(
    bundle: Bundle, config: ModelConfig, graphs: Mapping[GraphName, GraphFile], engines: EngineChoice
) -> OpenEstimate:
    needed = estimate(bundle, config, graphs, engines.backends)
    return dataclasses.replace(needed, backend=dataclasses.replace(needed.backend, tuning=engines.tuning))


def graph_files(bundle: Bundle, folder: Path | None = None) -> dict[GraphName, GraphFile]:
    """Both graphs of a bundle, as back ends open them; ``folder`` holds their files, None: the bundle does."""
    manifest = bundle.manifest
    return {
        name: GraphFile(
            path=(folder or bundle.path) / manifest.graphs[name].file,
            io=bundle.graph_io(name),
            precision=manifest.precision.graphs[name],
            weights_bytes=sum(manifest.files[file].size_bytes for file in bundle.graph_files(name)),
            digest=graph_hash(bundle, name),
            engines=bundle.path / layout.ENGINES,
            target=manifest.target,
        )
        for name in GRAPHS
    }


def _choose(bundle: Bundle, backend: str, device: str, threads: int | None) -> EngineChoice:
    return choose_engines(
        bundle, functools.partial(graph_hash, bundle), backend=backend, device=device, threads=threads
    )


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
