"""Graphs with weights that ONNX Runtime has packed before: made once on a machine, mapped whenever a bundle is opened.

    BUNDLE/onnx/decoder.onnx -> BUNDLE/engines/onnxruntime-VERSION-KEY/decoder.onnx, decoder.onnx.data, packed.json

ONNX Runtime packs int8 weights for its products, every time and into memory of its own: most of opening a large
bundle. With packed weights in the file it still packs each one, compares hashes, and then uses the file's, so that the
memory of one weight is enough: what another processor has packed costs time and never changes an answer. Like engines,
these files are derived, not hashed by the manifest, and may be deleted. Not here: building those of a bundle
(``export/packed_graphs.py``).
"""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

from blip3v import strict_json
from blip3v.bundle.precision import GraphPrecision
from blip3v.errors import ArtifactError, ConfigError
from blip3v.runtime.backends import GraphFile
from blip3v.runtime.engine_errors import path_for_engine
from blip3v.runtime.machine import cpu_features
from blip3v.runtime.onnxruntime_graph import (
    CPU_PROVIDER,
    PACKAGES,
    load_onnxruntime,
    onnxruntime_errors,
    package_version,
    session_options,
)

__all__ = ["find_packed", "folder_of", "is_packable", "packed_folder", "packed_in", "write_packed", "write_record"]

_RECORD = "packed.json"
_PACKABLE = frozenset({"int8"})  # formats whose packed weights ONNX Runtime stores


def is_packable(precision: GraphPrecision) -> bool:
    """Whether ONNX Runtime stores the packed weights of such a graph."""
    return precision.weights in _PACKABLE


def packed_folder(graph: GraphFile) -> Path | None:
    """Where the packed graph is, or would be; None: the graph is not one of a bundle, or has nothing to pack."""
    return folder_of(graph) if is_packable(graph.precision) else None


def folder_of(graph: GraphFile, derived: str = "") -> Path | None:
    """Where a packed form of a graph is, or would be, for this machine and this version of ONNX Runtime.

    Args:
        graph: the file.
        derived: what was made of the graph before it was packed, in a few letters; "": nothing.

    Returns:
        The folder; None: the graph is not one of a bundle, or ONNX Runtime is not installed.
    """
    version = next((found for found in map(package_version, PACKAGES) if found is not None), None)
    if version is None or graph.engines is None or not graph.digest:
        return None
    key = hashlib.sha256(f"{graph.digest} {platform.machine()} {_processor()}".encode()).hexdigest()[:12]
    return graph.engines / "-".join(filter(None, ("onnxruntime", version, derived, key)))


def find_packed(graph: GraphFile) -> Path | None:
    """The packed graph of this machine and this version of ONNX Runtime; None: there is none.

    Raises:
        ArtifactError: its files are not those that were written.
    """
    folder = packed_folder(graph)
    return None if folder is None or graph.extra_outputs else packed_in(folder, graph.path.name)


def packed_in(folder: Path, name: str) -> Path | None:
    """The packed graph ``name`` in a folder; None: there is no such folder.

    Raises:
        ArtifactError: its files are not those that were written.
    """
    if not folder.is_dir():
        return None
    try:
        sizes = strict_json.read_json(folder / _RECORD)
        found = {file.name: file.stat().st_size for file in folder.iterdir() if file.name != _RECORD}
    except (ConfigError, OSError) as error:
        raise ArtifactError(f"{folder} cannot be read: {error}; delete it") from error
    if found != sizes:
        raise ArtifactError(f"{folder} does not hold the files that were written; delete it")
    return folder / name


def write_packed(graph: GraphFile, folder: Path) -> None:
    """Opens a graph as it is and has ONNX Runtime write it, with its weights and their packed form, to ``folder``.

    Raises:
        BackendError: ONNX Runtime cannot open the graph.
        OSError: the file system reports an error.
    """
    name = graph.path.name
    options = session_options(None)
    options.optimized_model_filepath = path_for_engine(folder / name)
    for key, value in (
        ("session.optimized_model_external_initializers_file_name", f"{name}.data"),
        ("session.optimized_model_external_initializers_min_size_in_bytes", "1024"),
        ("session.save_external_prepacked_constant_initializers", "1"),
    ):
        options.add_session_config_entry(key, value)
    with onnxruntime_errors(f"packing {graph.path}"):
        path = path_for_engine(graph.path)
        load_onnxruntime().InferenceSession(path, options, providers=[CPU_PROVIDER], enable_fallback=False)
    write_record(folder)


def write_record(folder: Path) -> None:
    """Has the files in ``folder`` be those that ``packed_in`` expects there.

    Raises:
        OSError: the file system reports an error.
    """
    sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir()) if file.name != _RECORD}
    (folder / _RECORD).write_text(strict_json.dumps(sizes), "utf-8")


def _processor() -> str:
    """What the processor can do, on which the packed form depends: its features where the system lists them."""
    features = cpu_features()
    return platform.processor() if features is None else features
