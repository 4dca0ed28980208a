"""A bundle of a preset with random weights, to measure any size on any machine; first of all, what that will take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from blip3v.bench.defaults import kept_bundle
from blip3v.bundle.graph_io import GraphIO
from blip3v.bundle.precision import Precision
from blip3v.config import preset
from blip3v.runtime import memory
from blip3v.runtime.backends import AUTO, GRAPHS, GraphFile, choose_backend, parse_backends
from blip3v.units import format_bytes, format_duration

if TYPE_CHECKING:
    from blip3v.export.estimate import Estimate

__all__ = ["random_bundle", "token_counts"]

_COUNTS = (128, 32, 16)
# Engines, tokenizer, activations and cache, beside the weights.
_FIXED_BYTES = 2**30


def token_counts(preset_name: str) -> tuple[int, ...]:
    """Video tokens to measure a preset at: all of a clip, and the paper's fewer ones."""
    config = preset(preset_name)
    every = config.num_frames * config.resampler.num_latents
    return (every, *(count for count in _COUNTS if count < every))


def random_bundle(
    folder: Path,
    preset_name: str,
    *,
    precision: Precision,
    backends: Sequence[str] = (AUTO,),
    progress: Callable[[str], None] = lambda line: None,
) -> Path:
    """Exports the bundle to ``folder``, or reuses the intact one that is already there.

    Its weights are random, and its graphs are not compared with PyTorch, which would take more memory than measuring.

    Args:
        folder: where bundles are kept; created if it does not exist.
        preset_name: the model's shape, with the preset's own temporal encoder.
        precision: of each graph.
        backends: that will hold the bundle open at the same time.
        progress: called with lines about the bundle: what it takes, before anything is written.

    Raises:
        OutOfMemoryError: the export, or the opened bundle, needs more memory than is free.
        ArtifactError: the disk has too little space, or the bundle cannot be written.
        ExportError, CalibrationError: as ``blip3v export``.
    """
    from blip3v.export.estimate import estimate  # imports PyTorch
    from blip3v.export.source import resolve_source

    source = resolve_source(preset_name=preset_name, init="random")
    # Only the check provides the scales of a cache in int8.
    check = precision.decoder.cache == "int8" and not precision.is_quantized

    def announce(path: Path) -> None:
        needed = estimate(source.config, precision, check=check)
        opened = _opened_bytes(needed, precision, backends)
        progress(
            f"{path.name} will take about {format_bytes(needed.memory_bytes)} of memory and "
            f"{format_duration(needed.seconds)} to export, {format_bytes(needed.disk_bytes)} on disk, and "
            f"{format_bytes(opened)} of memory to measure"
        )
        needed.require(path)
        memory.require(opened, f"measuring {path.name}", "free some, or choose a smaller `precision`, such as int4")

    return kept_bundle(source, folder, precision, progress, check=check, before_export=announce)


def _opened_bytes(needed: Estimate, precision: Precision, backends: Sequence[str]) -> int:
    """The machine's memory that the opened graphs take on all back ends.

    From the bytes on disk, shared out by the numbers of weights.
    """
    num_weights = sum(needed.num_weights.values())
    total = 0
    for text in backends:
        chosen = parse_backends(text)
        for graph in GRAPHS:
            spec = precision.graphs[graph]
            stored = needed.disk_bytes * needed.num_weights[graph] // num_weights
            file = GraphFile(path=Path(), io=GraphIO((), ()), precision=spec, weights_bytes=stored)
            found = choose_backend(chosen[graph], graph, precision=spec).footprint(file)
            total += found.host_bytes + (found.weights_bytes if found.memory is memory.HOST else 0)
    return total + _FIXED_BYTES * len(backends)
