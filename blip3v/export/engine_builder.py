"""One engine: the builder's config and profiles, the build in a thread that Ctrl-C ends, the file it is written to."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip3v.bundle.engines import BuiltGraph, EngineLimits, EngineRecord
from blip3v.bundle.reader import Bundle
from blip3v.errors import BackendError, UsageError
from blip3v.export.engine_network import LayerPrecisions, Network, check_precision, parse_graph
from blip3v.export.engine_progress import EngineFile, Progress, progress_monitor, run_interruptibly, stream_writer
from blip3v.export.engine_request import EngineRequest
from blip3v.publishing import write_file
from blip3v.runtime import memory
from blip3v.runtime.backends import MAX_DRAFT_TOKENS, GraphName
from blip3v.runtime.engine_errors import engine_errors
from blip3v.runtime.tensorrt_library import TensorRT
from blip3v.runtime.tensorrt_log import tensorrt_log

__all__ = ["EngineJob", "default_level", "rtx_capabilities"]

_PIECE_BYTES = 64 * 2**20
_MYELIN = "Myelin"  # the compiler inside TensorRT, as its errors name it

_Axes = Mapping[str, tuple[int, int, int]]  # axis -> smallest, usual and largest size


def rtx_capabilities(tensorrt: TensorRT) -> dict[str, Any]:
    """What TensorRT-RTX builds for: compute capability -> its member of the library's enum, oldest first."""
    members = {name: re.fullmatch(r"SM(\d+)(\d)", name) for name in tensorrt.module.ComputeCapability.__members__}
    found = {name: (int(match[1]), int(match[2])) for name, match in members.items() if match}
    by_age = sorted(found, key=lambda name: found[name])
    return {
        f"{found[name][0]}.{found[name][1]}": tensorrt.module.ComputeCapability.__members__[name] for name in by_age
    }


def default_level(tensorrt: TensorRT) -> int:
    """The optimisation level that the library builds with unless told otherwise."""
    logger = tensorrt_log(tensorrt.module).logger
    return int(tensorrt.module.Builder(logger).create_builder_config().builder_optimization_level)


@dataclass(frozen=True)
class EngineJob:
    """One engine to build."""

    bundle: Bundle
    name: GraphName
    tensorrt: TensorRT
    request: EngineRequest
    planned: EngineRecord  # what the engines will be
    engines: Path  # the folder of all keys, which holds the timing cache

    def run(self, source: Path, target: Path, progress: Progress) -> tuple[BuiltGraph, LayerPrecisions]:
        """Builds the engine of the graph ``source`` into the new file ``target``.

        Returns:
            What was built, and what the layers of the parsed network compute in.

        Raises:
            BackendError: TensorRT refuses the graph, or does not build what was asked for.
            OutOfMemoryError: memory ran out.
            OSError: the file cannot be written.
            KeyboardInterrupt: Ctrl-C, at the next step of the build.
        """
        with tensorrt_log(self.tensorrt.module).showing_warnings():
            return self._run(source, target, progress)

    def _run(self, source: Path, target: Path, progress: Progress) -> tuple[BuiltGraph, LayerPrecisions]:
        started = time.perf_counter()
        manifest, limits, name = self.bundle.manifest, self.planned.limits, self.name
        progress(f"parse the {name}")
        capacity = limits.max_seq_len if name == "decoder" else None
        with engine_errors(self.tensorrt.name, self.tensorrt.module.__name__, f"parsing the {name}"):
            network = parse_graph(self.tensorrt, source, manifest.graphs[name], capacity=capacity)
        layers = check_precision(self.tensorrt, name, network, manifest.precision.graphs[name])
        stop = threading.Event()
        with EngineFile(target) as file:
            run_interruptibly(lambda: self._build(network, file, progress, stop), stop)
        built = BuiltGraph(
            graph_sha256=self.planned.graphs[name].graph_sha256,
            sha256=file.sha256,
            size_bytes=file.size_bytes,
            build_s=round(time.perf_counter() - started, 3),
            peak_rss_bytes=memory.peak_rss_bytes(),
        )
        return built, layers

    def _build(self, network: Network, file: EngineFile, progress: Progress, stop: threading.Event) -> None:
        trt, builder = self.tensorrt.module, network.builder
        tensorrt_log(trt).forget()
        with engine_errors(self.tensorrt.name, trt.__name__, f"building the {self.name}"):
            config = self._config(network)
            monitor = progress_monitor(trt, f"build the {self.name}", progress, stop)
            config.progress_monitor = monitor
            done = _write_engine(trt, builder, network.definition, config, file)
        file.check()
        if stop.is_set():
            return  # the thread that waits raises
        if not done or file.size_bytes == 0:
            reasons = tensorrt_log(trt).reasons()
            # Its compiler fails at some shapes and not at others.
            remedy = (
                "other shapes may build: try `prefill_chunk=256` or `max_batch_size=2`" if _MYELIN in reasons else ""
            )
            raise BackendError(f"{self.tensorrt.name} cannot build the {self.name}: {reasons}", remedy=remedy)
        self._keep_timings(config)

    def _config(self, network: Network) -> Any:
        """The builder's config: profiles, targets, flags."""
        trt = self.tensorrt.module
        config = network.builder.create_builder_config()
        for axes in _profiles(self.name, self.planned.limits):
            config.add_optimization_profile(_profile(network, self.bundle, self.name, axes))
        config.builder_optimization_level = self.planned.optimization_level
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the layer report
        if self.request.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.request.workspace_bytes)
        if self.tensorrt.is_rtx:
            known = rtx_capabilities(self.tensorrt)
            config.num_compute_capabilities = len(self.planned.compute_capabilities)
            for index, capability in enumerate(self.planned.compute_capabilities):
                config.set_compute_capability(known[capability], index)
            return config
        if self.request.version_compatible:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        if self.request.hardware_compatibility != "none":
            level = self.request.hardware_compatibility.upper()
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
        timings = self._timings
        cache = config.create_timing_cache(timings.read_bytes() if timings.is_file() else b"")
        config.set_timing_cache(cache, False)
        return config

    @property
    def _timings(self) -> Path:
        """The cache of measured kernels, for this library and GPU. TensorRT-RTX measures where the engine runs."""
        capability = self.planned.compute_capabilities[0].replace(".", "")
        return self.engines / f"{self.tensorrt.library}-{self.tensorrt.version}-sm{capability}.timing"

    def _keep_timings(self, config: Any) -> None:
        if not self.tensorrt.is_rtx:
            write_file(self._timings, bytes(memoryview(config.get_timing_cache().serialize())))


def _write_engine(trt: Any, builder: Any, definition: Any, config: Any, file: EngineFile) -> bool:
    """Builds into ``file``: in pieces as they come, or, with a library that cannot do that, from memory."""
    if hasattr(builder, "build_serialized_network_to_stream"):
        return bool(builder.build_serialized_network_to_stream(definition, config, stream_writer(trt, file)))
    plan = builder.build_serialized_network(definition, config)
    if plan is None:
        return False
    view = memoryview(plan)
    return all(file.write(view[at : at + _PIECE_BYTES]) for at in range(0, len(view), _PIECE_BYTES))


def _profiles(name: GraphName, limits: EngineLimits) -> list[_Axes]:
    """The ranges of the free axes, for each profile: a decoder has one for prompts and one for single tokens."""
    batch = (1, limits.max_batch_size, limits.max_batch_size)
    if name == "video_encoder":
        return [{"batch": batch, "num_frames": (1, limits.max_frames, limits.max_frames)}]
    chunk = limits.prefill_chunk
    verified = min(chunk, MAX_DRAFT_TOKENS + 1)  # the drafts of a row and the token before them go in as a chunk
    return [
        {"batch": batch, "num_new_tokens": (1, chunk, chunk), "num_positions": (1, 1, verified)},
        {"batch": batch, "num_new_tokens": (1, 1, 1), "num_positions": (1, 1, 1)},
    ]


def _profile(network: Network, bundle: Bundle, name: GraphName, axes: _Axes) -> Any:
    profile = network.builder.create_optimization_profile()
    inputs = [network.definition.get_input(index) for index in range(network.definition.num_inputs)]
    shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
    for spec in bundle.manifest.graphs[name].inputs:
        sizes = [_sizes(name, axis, size, axes) for axis, size in zip(spec.axes, shapes[spec.name], strict=True)]
        if -1 in shapes[spec.name]:
            profile.set_shape(spec.name, *zip(*sizes, strict=True))
    return profile


def _sizes(name: GraphName, axis: str | int, size: int, axes: _Axes) -> tuple[int, int, int]:
    """Smallest, usual and largest size of an axis that has ``size`` in the network, -1 if it is free there."""
    if size == -1:
        return axes[str(axis)]
    if axis in axes and axes[str(axis)][2] != size:
        raise UsageError(
            f"{axis} of the {name} is {size} in its graph, and {axes[str(axis)][2]} was asked for; ask for {size}, or "
            "run `blip3v export` again"
        )
    return size, size, size
