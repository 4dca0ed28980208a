"""``engines/KEY/engine.json``: what the engines in that folder were built from, by what, and for what.

The key names everything that decides whether an engine can be used, so engines for several GPUs lie side by side.
Engines are derived: not hashed by the manifest, and they may be deleted. Also here: whether an engine fits a machine
and a graph, which is checked before it is loaded. Not here: building engines (``export/engines.py``) and running them
(``runtime/backends/tensorrt``).
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from blip3v import strict_json
from blip3v.bundle.scan import hash_file
from blip3v.errors import ArtifactError, ArtifactHashError, ArtifactMissingError, ConfigError, EngineMismatchError

__all__ = [
    "LIBRARY_NAMES",
    "RECORD",
    "BuiltGraph",
    "EngineHost",
    "EngineLimits",
    "EngineRecord",
    "HardwareCompatibility",
    "Library",
    "check_engine",
    "engine_file",
    "engine_folders",
    "find_engine",
]

RECORD = "engine.json"
SCHEMA_VERSION = 1

Library = Literal["tensorrt", "tensorrt_rtx"]  # the Python package that builds and runs the engine
LIBRARY_NAMES: dict[Library, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]
_AMPERE = (8, 0)


def engine_file(graph: str) -> str:
    """Name of a graph's engine in the folder of its key."""
    return f"{graph}.engine"


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """What the engines' profiles admit, each at least 1."""

    max_batch_size: int  # clips, and rows of the decoder
    max_frames: int  # of a clip
    max_seq_len: int  # prompt, video tokens and answer together: the capacity of the KV cache
    prefill_chunk: int  # tokens of a prompt that go through the decoder at once

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise ConfigError(f"engine limits: {name} is {value}; at least 1 is needed")


@dataclass(frozen=True, kw_only=True)
class BuiltGraph:
    """One engine file."""

    graph_sha256: str  # of the graph's files, as ``opening.graph_hash`` gives it
    sha256: str  # of the engine
    size_bytes: int
    build_s: float
    peak_rss_bytes: int | None  # of the process that built it
    activation_bytes: int | None = None  # that its contexts take on the GPU; None: it was built without one


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The contents of ``engine.json``."""

    library: Library
    library_version: str
    compute_capabilities: tuple[str, ...]  # such as "8.6"; several for TensorRT-RTX
    platform: str  # operating system and processor: "linux-x86_64"
    limits: EngineLimits
    version_compatible: bool  # later versions of the library may load it
    hardware_compatibility: HardwareCompatibility
    optimization_level: int
    graphs: dict[str, BuiltGraph]  # video_encoder, decoder
    schema_version: int = SCHEMA_VERSION

    @property
    def key(self) -> str:
        """Name of the folder: readable, and different if anything differs that decides whether an engine fits."""
        values = asdict(self)
        values["graphs"] = {name: built.graph_sha256 for name, built in self.graphs.items()}
        digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
        capabilities = "-".join(f"sm{capability.replace('.', '')}" for capability in self.compute_capabilities)
        return f"{self.library}-{self.library_version}-{capabilities}-{digest}"

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``engine.json``, as a plain dict."""
        return asdict(self)

    def save(self, folder: Path) -> None:
        """Writes ``engine.json``."""
        (folder / RECORD).write_text(strict_json.dumps(self.to_dict()), "utf-8")

    @classmethod
    def load(cls, folder: Path) -> EngineRecord:
        """Reads ``engine.json``.

        Raises:
            ArtifactError: the file is missing, not JSON, of another schema, or has an unknown or missing key.
        """
        try:
            values = strict_json.read_json(folder / RECORD)
            if values.get("schema_version") != SCHEMA_VERSION:
                raise ConfigError(f"{folder / RECORD} has schema_version {values.get('schema_version')!r}")
            return strict_json.from_dict(cls, values, str(folder / RECORD))
        except ConfigError as error:
            raise ArtifactError(f"{error}; build the engines again with `blip3v build`") from error


@dataclass(frozen=True, kw_only=True)
class EngineHost:
    """What would load an engine."""

    library: Library
    library_version: str
    compute_capability: str  # of the GPU: "8.6"
    platform: str  # as ``EngineRecord.platform`` has it

    def __str__(self) -> str:
        library = f"{LIBRARY_NAMES[self.library]} {self.library_version}"
        return f"{library}, compute capability {self.compute_capability} and {self.platform}"


def engine_folders(engines: Path) -> list[Path]:
    """The folders of all keys in ``BUNDLE/engines``, sorted by name; [] if there is none. Without packed graphs."""
    if not engines.is_dir():
        return []
    passed_over = (".", "onnxruntime-")  # of runtime/packed_graphs.py
    return sorted(folder for folder in engines.iterdir() if not folder.name.startswith(passed_over) and folder.is_dir())


def find_engine(engines: Path, graph: str, graph_sha256: str, host: EngineHost) -> tuple[Path, EngineRecord]:
    """The folder of the first engine that fits, and its record. The engine's own file is checked by ``check_engine``.

    Args:
        engines: ``BUNDLE/engines``, which may not exist.
        graph: video_encoder or decoder.
        graph_sha256: of the graph's files, as ``opening.graph_hash`` gives it.
        host: what would load it.

    Raises:
        ArtifactMissingError: there is no engine at all.
        EngineMismatchError: none of them fits; the message has the reason of each.
        ArtifactError: a record cannot be read.
    """
    reasons = []
    for folder in engine_folders(engines):
        record = EngineRecord.load(folder)
        reason = _misfit(record, graph, graph_sha256, host)
        if reason is None:
            return folder, record
        reasons.append(f"{folder.name} {reason}")
    if not reasons:
        raise ArtifactMissingError(f"{engines.parent} has no engines; run `blip3v build {engines.parent}`")
    raise EngineMismatchError(
        f"no engine of {engines.parent} fits: {'; '.join(reasons)}; run `blip3v build {engines.parent}` on this machine"
    )


def check_engine(folder: Path, graph: str, graph_sha256: str, host: EngineHost) -> EngineRecord:
    """Checks an engine before it is loaded, every byte of it.

    Args:
        folder: of its key.
        graph: video_encoder or decoder.
        graph_sha256: of the graph's files, as ``opening.graph_hash`` gives it.
        host: what would load it.

    Raises:
        EngineMismatchError: built from another graph, or for another library, version, GPU or system.
        ArtifactMissingError: the file is missing.
        ArtifactHashError: the file is not the one that was built.
        ArtifactError: the record cannot be read.
    """
    record = EngineRecord.load(folder)
    bundle = folder.parent.parent
    again = f"run `blip3v build {bundle}`"
    reason = _misfit(record, graph, graph_sha256, host)
    if reason is not None:
        raise EngineMismatchError(f"{folder / engine_file(graph)} {reason}; {again} on this machine")
    path, built = folder / engine_file(graph), record.graphs[graph]
    if not path.is_file():
        raise ArtifactMissingError(f"{path} is missing; delete {folder} and {again}")
    size = path.stat().st_size
    if size != built.size_bytes:
        raise ArtifactHashError(f"{path} has {size} bytes; {built.size_bytes} were built; delete {folder} and {again}")
    if hash_file(path) != built.sha256:
        raise ArtifactHashError(
            f"{path} is not the engine that was built (sha256 differs); delete {folder} and {again}"
        )
    return record


def _misfit(record: EngineRecord, graph: str, graph_sha256: str, host: EngineHost) -> str | None:
    """Why an engine cannot be used; None if it can."""
    built = record.graphs.get(graph)
    if built is None:
        return f"has no engine of the {graph}"
    if built.graph_sha256 != graph_sha256:
        return f"was built from another {graph}: the bundle was exported again since"
    if not _fits(record, host):
        library = f"{LIBRARY_NAMES[record.library]} {record.library_version}"
        capabilities = ", ".join(record.compute_capabilities)
        return f"was built with {library} for compute capability {capabilities} and {record.platform}; here is {host}"
    return None


def _fits(record: EngineRecord, host: EngineHost) -> bool:
    same_version = record.library_version == host.library_version
    newer = record.version_compatible and _numbers(host.library_version) >= _numbers(record.library_version)
    listed = host.compute_capability in record.compute_capabilities
    ampere = record.hardware_compatibility == "ampere_plus" and _numbers(host.compute_capability) >= _AMPERE
    return (
        record.library == host.library
        and record.platform == host.platform
        and (same_version or newer)
        and (listed or ampere)
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))
