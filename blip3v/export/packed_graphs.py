"""The packed graphs of a bundle for ONNX Runtime on this machine, published beside its engines."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from blip3v.bundle import layout
from blip3v.bundle.hub_links import real_files
from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.targets import DEFAULT_TARGET
from blip3v.errors import ProviderError, UsageError
from blip3v.export.engine_progress import Progress
from blip3v.export.engines import build_alone, check_files
from blip3v.extras import pip_line
from blip3v.publishing import check_writable, new_folder, require_disk
from blip3v.runtime import memory
from blip3v.runtime.backends import GRAPHS, GraphFile, GraphName, get_backend
from blip3v.runtime.opening import graph_files
from blip3v.runtime.packed_graphs import find_packed, is_packable, packed_folder, write_packed, write_record
from blip3v.runtime.prompt_weights import find_prompt_weights, has_blocks, prompt_weights_folder

__all__ = ["PackedBuild", "build_packed", "build_prompt_weights"]

_DISK_COPIES = 2.2  # the weights, their packed form, and what was constant or is aligned
_UNPACKED_COPIES = 1.0  # on disk too while weights for prompts are packed
_MEMORY_COPIES = 2.2
_FIXED_BYTES = 512 * 2**20
_INT8_BYTES = {"int4-block": 2, "int8-block": 1}  # of a weight, in units of what it takes in blocks
_READERS = ("onnx", "onnx_ir")  # read and write graphs; in the extra ``export``


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
    check_writable(bundle.path / layout.ENGINES)
    folders, is_new = dict[GraphName, Path](), False
    with real_files(bundle.path, [file for name in GRAPHS for file in bundle.graph_files(name)]) as files:
        for name, graph in graph_files(bundle, files).items():
            folder = packed_folder(graph)
            if folder is not None:
                folders[name] = folder
                packing = _Packing(graph, folder, graph.weights_bytes, _DISK_COPIES, find_packed, write_packed)
                is_new |= packing.run(bundle, name, progress, force=force)
    return _build(bundle, folders, started, is_new=is_new)


def build_prompt_weights(
    path: Path, *, force: bool = False, progress: Progress = lambda stage, done=0, total=0: None
) -> PackedBuild:
    """Makes int8 weights for prompts of a decoder in blocks, packed for this machine; those that are there are kept.

    Args:
        path: the bundle, exported for ONNX Runtime with a decoder in int4, int8-weight or mixed.
        force: makes again what is there.
        progress: told the stage.

    Raises:
        UsageError: the decoder has no weights in blocks, or is for TensorRT.
        ProviderError: ONNX Runtime, or what reads graphs, is not installed.
        ArtifactError, OutOfMemoryError, BackendError: as ``build_packed``.
    """
    started = time.perf_counter()
    bundle = open_bundle(path)
    get_backend("onnxruntime").check_installed()
    _check_blocks(bundle)
    missing = [module for module in _READERS if find_spec(module) is None]
    if missing:
        names = " and ".join(missing)
        raise ProviderError(f"making weights for prompts needs {names}, not installed here; run: {pip_line('export')}")
    check_writable(bundle.path / layout.ENGINES)
    with real_files(bundle.path, [file for name in GRAPHS for file in bundle.graph_files(name)]) as files:
        graph = graph_files(bundle, files)["decoder"]
        folder = prompt_weights_folder(graph)
        assert folder is not None, "a decoder of a bundle, with blocks"
        num_bytes = _INT8_BYTES[graph.precision.weights] * graph.weights_bytes
        copies = _DISK_COPIES + _UNPACKED_COPIES
        packing = _Packing(graph, folder, num_bytes, copies, find_prompt_weights, _write_for_prompts)
        is_new = packing.run(bundle, "decoder", progress, force=force)
    return _build(bundle, {"decoder": folder}, started, is_new=is_new)


def _build(bundle: Bundle, folders: dict[GraphName, Path], started_s: float, *, is_new: bool) -> PackedBuild:
    return PackedBuild(
        path=bundle.path / layout.ENGINES,
        folders=folders,
        seconds=time.perf_counter() - started_s,
        is_new=is_new,
        peak_rss_bytes=memory.peak_rss_bytes(),
    )


@dataclass(frozen=True)
class _Packing:
    """One graph to be packed."""

    graph: GraphFile
    folder: Path  # of its packed form
    weights_bytes: int  # of what is packed
    disk_copies: float  # of these, while it is packed
    find: Callable[[GraphFile], Path | None]
    write: Callable[[GraphFile, Path], None]

    def run(self, bundle: Bundle, name: GraphName, progress: Progress, *, force: bool) -> bool:
        """Packs it, alone; False: it is there already."""
        with build_alone(self.folder):
            if not force and self.find(self.graph) is not None:
                return False
            what = f"packing the {name} of {bundle.path}"
            require_disk(self.folder.parent, int(self.disk_copies * self.weights_bytes), what)
            needed = _FIXED_BYTES + int(_MEMORY_COPIES * self.weights_bytes)
            memory.require(needed, what, "close other programs, or build on a machine with more memory")
            check_files(bundle, progress, (name,))
            progress(f"pack the {name}")
            with new_folder(self.folder) as staging:
                self.write(self.graph, staging)
            return True


def _write_for_prompts(graph: GraphFile, folder: Path) -> None:
    """Writes the decoder in int8 to a folder beside ``folder``, which is removed, and packs it into ``folder``."""
    from blip3v.export.prompt_weights import pack_blocks_when_opened, write_for_prompts  # imports onnx

    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as unpacked:
        path = Path(unpacked) / graph.path.name
        write_for_prompts(graph.path, graph.precision, path)
        write_packed(dataclasses.replace(graph, path=path), folder)
    pack_blocks_when_opened(folder / path.name)
    write_record(folder)


def _check_packable(bundle: Bundle) -> None:
    precision = bundle.manifest.precision
    if bundle.manifest.target == DEFAULT_TARGET and any(map(is_packable, precision.graphs.values())):
        return
    raise UsageError(
        f"{bundle.path} is stored in {precision.name} for {bundle.manifest.target}; ONNX Runtime keeps packed weights "
        f"of int8 graphs for {DEFAULT_TARGET} alone",
        remedy="leave `library` out to build TensorRT engines; other bundles are opened as they are",
    )


def _check_blocks(bundle: Bundle) -> None:
    precision = bundle.manifest.precision
    if bundle.manifest.target != DEFAULT_TARGET:
        why = f"is exported for {bundle.manifest.target}; weights for prompts are made for {DEFAULT_TARGET} alone"
    elif not has_blocks(precision.decoder):
        already = ": int8 reads prompts in int8 already" if precision.decoder.weights == "int8" else ""
        why = (
            f"has a decoder in {precision.decoder.name}, without weights in blocks, of which alone weights for prompts "
            f"are made{already}"
        )
    else:
        return
    raise UsageError(f"{bundle.path} {why}", remedy="leave `prompt_weights` out, or export with `precision='int4'`")
