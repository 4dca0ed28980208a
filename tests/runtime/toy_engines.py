"""Engines of toy graphs for the fake TensorRT, with real records in the folder where a bundle has them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import tensorrt_stand_in
from cuda_stand_in import VERSIONS

from blip3v.bundle.engines import BuiltGraph, EngineLimits, EngineRecord, Library, engine_file
from blip3v.bundle.graph_io import TensorSpec
from blip3v.runtime.backends import MAX_DRAFT_TOKENS, GraphFile, GraphName
from blip3v.runtime.tensorrt_library import host_platform

LIMITS = EngineLimits(max_batch_size=4, max_frames=16, max_seq_len=256, prefill_chunk=64)
CAPABILITY = "8.6"


def write_engines(
    folder: Path | None,
    graphs: dict[GraphName, GraphFile],
    *,
    limits: EngineLimits = LIMITS,
    library: Library = "tensorrt_rtx",
    version: str | None = None,
    capabilities: tuple[str, ...] = (CAPABILITY,),
    is_aliased: bool = True,
) -> Path:
    """Writes engines of the graphs below ``folder`` (BUNDLE/engines) and gives the folder of their key."""
    assert folder is not None
    plans = {
        name: tensorrt_stand_in.plan_bytes(
            graph.path,
            _profiles(name, graph, limits),
            capacity=limits.max_seq_len if name == "decoder" else None,
            is_aliased=is_aliased,
        )
        for name, graph in graphs.items()
    }
    record = EngineRecord(
        library=library,
        library_version=version or VERSIONS[library],
        compute_capabilities=capabilities,
        platform=host_platform(),
        limits=limits,
        version_compatible=False,
        hardware_compatibility="none",
        optimization_level=3,
        graphs={name: _built(graphs[name], plan) for name, plan in plans.items()},
    )
    target = folder / record.key
    target.mkdir(parents=True)
    record.save(target)
    for name, plan in plans.items():
        (target / engine_file(name)).write_bytes(plan)
    return target


def _built(graph: GraphFile, plan: bytes) -> BuiltGraph:
    return BuiltGraph(
        graph_sha256=graph.digest,
        sha256=hashlib.sha256(plan).hexdigest(),
        size_bytes=len(plan),
        build_s=0.1,
        peak_rss_bytes=None,
    )


def _profiles(name: GraphName, graph: GraphFile, limits: EngineLimits) -> list[tensorrt_stand_in.Profile]:
    """As the builder chooses them: chunks of a prompt and single tokens for the decoder, clips for the encoder."""
    most = {"batch": limits.max_batch_size, "num_frames": limits.max_frames}
    lengths = (limits.prefill_chunk, 1) if name == "decoder" else (1,)
    return [
        {
            spec.name: _range(
                spec, most | {"num_new_tokens": longest, "num_positions": min(longest, MAX_DRAFT_TOKENS + 1)}, limits
            )
            for spec in graph.io.inputs
        }
        for longest in lengths
    ]


def _range(spec: TensorSpec, most: dict[str, int], limits: EngineLimits) -> tuple[tuple[int, ...], ...]:
    least = dict.fromkeys(most, 1) | {"capacity": limits.max_seq_len}
    low = tuple(axis if isinstance(axis, int) else least[axis] for axis in spec.axes)
    high = tuple(
        axis if isinstance(axis, int) else (most | {"capacity": limits.max_seq_len})[axis] for axis in spec.axes
    )
    return low, high, high
