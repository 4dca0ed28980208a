"""``engines/KEY/engine.json``: what the engines in that folder were built from, by what, and for what.

The key names everything that decides whether an engine can be used, so engines for several GPUs lie side by side.
Engines are derived: not hashed by the manifest, and they may be deleted. Not here: building them
(``export/engines.py``) and running them (``runtime/backends/tensorrt``).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from blip3v import strict_json
from blip3v.errors import ArtifactError, ConfigError

__all__ = ["RECORD", "BuiltGraph", "EngineLimits", "EngineRecord", "Library", "engine_file"]

RECORD = "engine.json"
SCHEMA_VERSION = 1

Library = Literal["tensorrt", "tensorrt_rtx"]  # the Python package that builds and runs the engine


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


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """The contents of ``engine.json``."""

    library: Library
    library_version: str
    compute_capabilities: tuple[str, ...]  # such as "8.6"; several for TensorRT-RTX
    platform: str  # operating system and processor: "linux-x86_64"
    limits: EngineLimits
    version_compatible: bool  # later versions of the library may load it
    hardware_compatibility: str  # "none", "ampere_plus" or "same_compute_capability"
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

    def save(self, folder: Path) -> None:
        """Writes ``engine.json``."""
        (folder / RECORD).write_text(strict_json.dumps(asdict(self)), "utf-8")

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
