"""TensorRT engines of a bundle: both graphs built, hashed while they are written, and published under their key.

    BUNDLE/onnx/GRAPH.onnx -> network -> profiles, config -> BUNDLE/engines/KEY/GRAPH.engine, engine.json

The same code drives ``tensorrt`` and ``tensorrt_rtx``. Networks are strongly typed: the precision is that of the graph.
The decoder has two profiles, chunks of a prompt and single tokens. Not here: one graph's parsing
(``engine_network.py``) and build (``engine_builder.py``), limits and options (``engine_request.py``), and whether an
engine fits a machine (``bundle/engines.py``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from blip3v.bundle import layout
from blip3v.bundle.engines import RECORD, BuiltGraph, EngineHost, EngineLimits, EngineRecord, check_engine, engine_file
from blip3v.bundle.hub_links import real_files
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.scan import hash_file
from blip3v.bundle.targets import Target
from blip3v.errors import ArtifactError, ArtifactHashError, EngineMismatchError, ExportError, ProviderError, UsageError
from blip3v.export.engine_builder import EngineJob, default_level, rtx_capabilities
from blip3v.export.engine_network import LayerPrecisions
from blip3v.export.engine_progress import Progress
from blip3v.export.engine_report import no_report, write_layer_reports
from blip3v.export.engine_request import EngineRequest, chosen_library, engine_limits
from blip3v.extras import pip_line
from blip3v.publishing import cannot_write, check_writable, new_folder, one_at_a_time, require_disk
from blip3v.runtime import memory
from blip3v.runtime.backends import GRAPHS, GraphName
from blip3v.runtime.opening import graph_hash
from blip3v.runtime.tensorrt_library import EXTRA_OF, TensorRT, compute_capability, host_platform, load_tensorrt

__all__ = ["EngineBuild", "build_alone", "build_engines", "check_files"]

# What TensorRT-RTX builds for on a machine without a GPU, as its manual lists them.
_USUAL_CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
# The operators of the target ``tensorrt``: TensorScatter is in the parser since then.
_OLDEST: dict[Target, tuple[int, int]] = {"tensorrt": (10, 15), "tensorrt-legacy": (10, 3)}
_READERS = ("onnx", "onnx_ir")  # modules of the same extra that read the graphs
# Memory of a build: the weights as they are mapped and as the builder holds them, and what it needs whatever the graph.
_WEIGHT_COPIES = 3
_FIXED_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class EngineBuild:
    """Engines in their place."""

    path: Path  # the folder of their key
    record: EngineRecord
    library: str  # its name and version for people
    seconds: float  # of everything
    is_new: bool  # False: they were there already, and were kept
    layers: dict[str, LayerPrecisions]  # graph -> what its layers compute in; {} if the engines were kept
    unreadable: str | None  # why this machine cannot read its engines, nor report their layers; None: it can

    @property
    def size_bytes(self) -> int:
        """Of all engines."""
        return sum(built.size_bytes for built in self.record.graphs.values())

    @property
    def peak_rss_bytes(self) -> int | None:
        """Of the process that built them; None if the system did not tell."""
        peaks = [built.peak_rss_bytes for built in self.record.graphs.values() if built.peak_rss_bytes is not None]
        return max(peaks, default=None)


def _quiet(stage: str, done: int = 0, total: int = 0) -> None:
    pass


def build_engines(
    path: Path, request: EngineRequest | None = None, *, force: bool = False, progress: Progress = _quiet
) -> EngineBuild:
    """Builds the engines of a bundle and publishes them under their key; engines of that key are kept.

    Args:
        path: the bundle, exported for TensorRT.
        request: limits and options; None: the defaults.
        force: builds even if engines of the same key are there, and replaces them.
        progress: told the stage, and the share of it that is done, from another thread.

    Raises:
        UsageError: the bundle is not for TensorRT, or cannot do what was asked for.
        ArtifactError: the bundle cannot be read, or the engines cannot be written.
        ProviderError: TensorRT is not installed or too old, or there is no GPU that it builds for.
        ExportError: a graph breaks a rule of TensorRT's parser or of its quantisation.
        OutOfMemoryError: building needs more memory than is free.
        BackendError: TensorRT refuses a graph, or does not build what was asked for.
        KeyboardInterrupt: Ctrl-C, at the next step of the build; nothing is left behind.
    """
    started = time.perf_counter()
    request = request or EngineRequest()
    bundle = open_bundle(path)
    library = chosen_library(bundle, request)
    limits = engine_limits(bundle, request)
    tensorrt = load_tensorrt(library)
    _require_readers(tensorrt)
    _check_version(tensorrt, bundle.manifest.target)
    planned = _planned(bundle, tensorrt, request, limits)
    engines = bundle.path / layout.ENGINES
    check_writable(engines)
    folder = engines / planned.key
    with build_alone(folder):
        is_new = force or not (folder / RECORD).is_file()
        unreadable = no_report(planned, compute_capability())
        if is_new:
            _require_room(bundle, engines)
            check_files(bundle, progress)
            _check_graphs(bundle, progress)
            with new_folder(folder) as staging:
                record, layers = _build(bundle, tensorrt, request, planned, staging, progress)
                if unreadable is None:
                    progress("read the layers")
                    record = write_layer_reports(tensorrt, staging, record)
                    record.save(staging)
        else:
            record, layers = _intact(folder, planned), {}
    return EngineBuild(
        path=folder,
        record=record,
        library=tensorrt.name,
        seconds=time.perf_counter() - started,
        is_new=is_new,
        layers=layers,
        unreadable=unreadable,
    )


def _require_readers(tensorrt: TensorRT) -> None:
    missing = [module for module in _READERS if find_spec(module) is None]
    if missing:
        line = pip_line(EXTRA_OF[tensorrt.library])
        raise ProviderError(f"building engines needs {' and '.join(missing)}, which is not installed; run: {line}")


def _check_version(tensorrt: TensorRT, target: Target) -> None:
    oldest = _OLDEST.get(target)
    if tensorrt.is_rtx or oldest is None:
        return
    version = tuple(int(number) for number in re.findall(r"\d+", tensorrt.version)[:2])
    if version < oldest:
        legacy = ", or export with the target tensorrt-legacy" if target == "tensorrt" and version >= (10, 3) else ""
        raise ProviderError(
            f"{tensorrt.name} does not have the operators of the target {target}; "
            f"TensorRT {oldest[0]}.{oldest[1]} or later does: install one{legacy}"
        )


def _planned(bundle: Bundle, tensorrt: TensorRT, request: EngineRequest, limits: EngineLimits) -> EngineRecord:
    """The record of engines that are not built yet: its key is that of the engines."""
    graphs: dict[str, BuiltGraph] = {
        name: BuiltGraph(graph_sha256=graph_hash(bundle, name), sha256="", size_bytes=0, build_s=0, peak_rss_bytes=None)
        for name in GRAPHS
    }
    level = request.optimization_level
    return EngineRecord(
        library=tensorrt.library,
        library_version=tensorrt.version,
        compute_capabilities=_capabilities(tensorrt, request),
        platform=host_platform(),
        limits=limits,
        version_compatible=request.version_compatible,
        hardware_compatibility=request.hardware_compatibility,
        optimization_level=default_level(tensorrt) if level is None else level,
        graphs=graphs,
    )


def _capabilities(tensorrt: TensorRT, request: EngineRequest) -> tuple[str, ...]:
    """What is built for: what was asked for, else the GPU of this machine, else (RTX) the usual ones."""
    own = compute_capability()
    if not tensorrt.is_rtx:
        if own is None:
            raise ProviderError(
                "TensorRT builds an engine on the GPU that is to run it, and this machine has no CUDA driver; run "
                "`blip3v build` there, or export for tensorrt-rtx, which builds anywhere"
            )
        return (own,)
    wanted = request.compute_capability or (_USUAL_CAPABILITIES if own is None else (own,))
    known = rtx_capabilities(tensorrt)
    unknown = [capability for capability in wanted if capability not in known]
    if unknown:
        raise UsageError(
            f"{tensorrt.name} does not build for compute capability {', '.join(unknown)}; it does for "
            f"{', '.join(known)}",
            remedy="choose from them: `compute_capability='8.6,8.9'`",
        )
    return tuple(sorted(wanted, key=list(known).index))


@contextlib.contextmanager
def build_alone(folder: Path) -> Iterator[None]:
    """Lets one process at a time build the engines of a key; the next one then finds them there."""
    try:
        folder.parent.mkdir(exist_ok=True)
        with one_at_a_time(folder):
            yield
    except OSError as error:
        raise cannot_write(folder, error) from error


def _intact(folder: Path, planned: EngineRecord) -> EngineRecord:
    """The record of engines that are there already, after a check of every byte.

    Raises:
        ArtifactError: they are damaged.
    """
    host = EngineHost(
        library=planned.library,
        library_version=planned.library_version,
        compute_capability=planned.compute_capabilities[0],
        platform=planned.platform,
    )
    try:
        for name, built in planned.graphs.items():
            record = check_engine(folder, name, built.graph_sha256, host)
    except (ArtifactError, EngineMismatchError) as error:
        raise ArtifactError(
            f"the engines that are in {folder} already are damaged: {error}", remedy="or replace them with `force=True`"
        ) from error
    return record


def _require_room(bundle: Bundle, engines: Path) -> None:
    sizes = [sum(bundle.manifest.files[file].size_bytes for file in bundle.graph_files(name)) for name in GRAPHS]
    advice = "close other programs, or build on a machine with more memory"
    memory.require(_FIXED_BYTES + _WEIGHT_COPIES * max(sizes), f"building the engines of {bundle.path}", advice)
    require_disk(engines, sum(sizes), f"building the engines of {bundle.path}")


def check_files(bundle: Bundle, progress: Progress, graphs: Sequence[GraphName] = GRAPHS) -> None:
    """Raises if a graph's files changed since the export: the engines would be recorded as built from the old ones.

    Opening a bundle hashes its small files alone.
    """
    for name in graphs:
        progress(f"hash the {name}")
        for file in bundle.graph_files(name):
            if hash_file(bundle.path / file) != bundle.manifest.files[file].sha256:
                raise ArtifactHashError(
                    f"{bundle.path / file} is not the file that was written (sha256 differs); copy the bundle again, "
                    "or run `blip3v export` again"
                )


def _check_graphs(bundle: Bundle, progress: Progress) -> None:
    """Raises unless TensorRT's parser takes every node of both graphs, and means the same by it."""
    from blip3v.export.tensorrt_operators import check_tensorrt_operators  # imports onnx

    for name in GRAPHS:
        progress(f"check the {name}")
        path = bundle.path / layout.graph_file(name)
        violations = check_tensorrt_operators(path, bundle.manifest.target).violations
        if violations:
            more = f", and {len(violations) - 1} more" if len(violations) > 1 else ""
            raise ExportError(
                f"TensorRT would refuse the {name} of {bundle.path}, or compute something else: {violations[0]}{more}; "
                "run `blip3v export` again"
            )


def _build(
    bundle: Bundle, tensorrt: TensorRT, request: EngineRequest, planned: EngineRecord, staging: Path, progress: Progress
) -> tuple[EngineRecord, dict[str, LayerPrecisions]]:
    """Builds both engines into the folder ``staging``, with their record."""
    layers: dict[str, LayerPrecisions] = {}
    built: dict[str, BuiltGraph] = {}
    files = [file for name in GRAPHS for file in bundle.graph_files(name)]
    with real_files(bundle.path, files) as graphs:
        for name in GRAPHS:
            job = EngineJob(bundle, name, tensorrt, request, planned, bundle.path / layout.ENGINES)
            built[name], layers[name] = job.run(graphs / layout.graph_file(name), staging / engine_file(name), progress)
            memory.return_freed()
    record = dataclasses.replace(planned, graphs=built)
    record.save(staging)
    return record, layers
