"""The packed graphs of a bundle for ONNX Runtime on this machine, published beside its engines."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from blip3v.bundle import layout
from blip3v.bundle.hub_links import real_files
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.targets import DEFAULT_TARGET
from blip3v.errors import UsageError
from blip3v.export.engine_progress import Progress
from blip3v.export.engines import build_alone, check_files
from blip3v.publishing import check_writable, new_folder, require_disk
from blip3v.runtime import memory
from blip3v.runtime.backends import GRAPHS, GraphFile, GraphName, get_backend
from blip3v.runtime.opening import graph_files
from blip3v.runtime.packed_graphs import find_packed, is_packable, packed_folder, write_packed

__all__ = ["PackedBuild", "build_packed"]

_DISK_COPIES = 2.2  # the weights, their packed form, and what was constant or is aligned
_MEMORY_COPIES = 2.2
_FIXED_BYTES = 512 * 2**20


@dataclass(frozen=True, kw_only=True)
class PackedBuild:
    """Packed graphs in their place."""

    path: Path  # the bundle's folder of engines
    folders: dict[GraphName, Path]
    seconds: float
    is_new: bool  # False: all were there already, and were kept
    peak_rss_bytes: int | None

    @property
    def size_bytes(self) -> int:
        """Of all packed graphs."""
        return sum(file.stat().st_size for folder in self.folders.values() for file in folder.iterdir())


def build_packed(
    path: Path, *, force: bool = False, progress: Progress = lambda stage, done=0, total=0: None
) -> PackedBuild:
    """Packs the int8 graphs of a bundle for ONNX Runtime on this machine; those that are there are kept.

    Args:
        path: the bundle, exported for ONNX Runtime.
        force: packs again what is there.
        progress: told the stage.

    Raises:
        UsageError: the bundle has no int8 graph, or is for TensorRT.
        ArtifactError: the bundle cannot be read, or the packed graphs cannot be written.
        ProviderError: ONNX Runtime is not installed.
        OutOfMemoryError: packing needs more memory than is free.
        BackendError: ONNX Runtime cannot open a graph.
    """
    started = time.perf_counter()
    bundle = open_bundle(path)
    get_backend("onnxruntime").check_installed()
    _check_packable(bundle)
    engines = bundle.path / layout.ENGINES
    check_writable(engines)
    folders, is_new = dict[GraphName, Path](), False
    with real_files(bundle.path, [file for name in GRAPHS for file in bundle.graph_files(name)]) as files:
        for name, graph in graph_files(bundle, files).items():
            folder = packed_folder(graph)
            if folder is not None:
                folders[name] = folder
                is_new |= _pack(bundle, name, graph, folder, progress, force=force)
    return PackedBuild(
        path=engines,
        folders=folders,
        seconds=time.perf_counter() - started,
        is_new=is_new,
        peak_rss_bytes=memory.peak_rss_bytes(),
    )


def _pack(bundle: Bundle, name: GraphName, graph: GraphFile, folder: Path, progress: Progress, *, force: bool) -> bool:
    """Packs one graph; False: it is there already."""
    with build_alone(folder):
        if not force and find_packed(graph) is not None:
            return False
        what = f"packing the {name} of {bundle.path}"
        require_disk(folder.parent, int(_DISK_COPIES * graph.weights_bytes), what)
        needed = _FIXED_BYTES + int(_MEMORY_COPIES * graph.weights_bytes)
        memory.require(needed, what, "close other programs, or build on a machine with more memory")
        check_files(bundle, progress, (name,))
        progress(f"pack the {name}")
        with new_folder(folder) as staging:
            write_packed(graph, staging)
        return True


def _check_packable(bundle: Bundle) -> None:
    precision = bundle.manifest.precision
    if bundle.manifest.target == DEFAULT_TARGET and any(map(is_packable, precision.graphs.values())):
        return
    raise UsageError(
        f"{bundle.path} is stored in {precision.name} for {bundle.manifest.target}; ONNX Runtime keeps packed weights "
        f"of int8 graphs for {DEFAULT_TARGET} alone",
        remedy="leave `library` out to build TensorRT engines; other bundles are opened as they are",
    )
