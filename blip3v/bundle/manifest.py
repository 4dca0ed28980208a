"""``manifest.json``: what a bundle contains, as frozen dataclasses, with strict JSON in and out.

Not here: whether the files on disk are the ones that the manifest lists (``reader.py``, ``verify.py``).
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip3v import strict_json
from blip3v.bundle import layout, old_manifest
from blip3v.bundle.graph_io import SYMBOLIC_DTYPES, GraphIO, TensorSpec
from blip3v.bundle.precision import CACHE_ITEM_BYTES, GraphPrecision, Precision
from blip3v.bundle.targets import Target
from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError, ArtifactMissingError, ArtifactVersionError, ConfigError

__all__ = [
    "FileEntry",
    "GraphEntry",
    "KVGeometry",
    "Limits",
    "Manifest",
    "Source",
    "WeightCount",
]

SCHEMA_VERSION = 2
MAX_MANIFEST_BYTES = 2**20

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class FileEntry:
    """One file as it was written."""

    sha256: str  # hex, lower case
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class GraphEntry:
    """One graph, with its inputs and outputs in order."""

    file: str  # relative to the bundle
    inputs: tuple[TensorSpec, ...]  # with the dtypes of the graph's precision
    outputs: tuple[TensorSpec, ...]

    @classmethod
    def of(cls, name: str, io: GraphIO, precision: GraphPrecision) -> GraphEntry:
        """The entry of the graph ``name``, from the table of its inputs and outputs."""
        resolved = io.resolved(precision)
        return cls(file=layout.graph_file(name), inputs=resolved.inputs, outputs=resolved.outputs)


@dataclass(frozen=True, kw_only=True)
class KVGeometry:
    """Shape and size of the KV cache, whose dtype is the decoder's ``GraphPrecision.cache``."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    sliding_window: int | None  # a token attends to this many tokens, itself included; None: all
    bytes_per_token: int  # keys and values of all layers

    @classmethod
    def of(cls, config: ModelConfig, precision: GraphPrecision) -> KVGeometry:
        """The cache that a model needs at the decoder's precision."""
        text = config.text
        assert precision.cache is not None, "a decoder has a cache"
        return cls(
            num_layers=text.num_layers,
            num_kv_heads=text.num_kv_heads,
            head_dim=text.head_dim,
            sliding_window=text.sliding_window,
            bytes_per_token=2 * text.num_layers * text.num_kv_heads * text.head_dim * CACHE_ITEM_BYTES[precision.cache],
        )


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model folder that a bundle was made from."""

    name: str  # without a path
    sha256: dict[str, str]  # file of the model folder -> hash; empty for random weights
    random_init: bool  # random weights: good for benchmarks, useless for answers
    trained: bool  # every part was trained; False also for a new temporal encoder on a trained base


@dataclass(frozen=True, kw_only=True)
class WeightCount:
    """Stored weights of one dtype in one graph."""

    num_tensors: int
    num_elements: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request cannot exceed."""

    max_context: int  # prompt, video tokens and answer together


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The contents of ``manifest.json``.

    Raises:
        ConfigError: values that a bundle cannot have, such as a file name that points outside it.
    """

    created_by: dict[str, str]  # tool -> version
    source: Source
    model: str  # the preset, as ``ModelConfig.name``
    encoder: str
    num_frames: int  # frames per clip, as checked by the export
    num_video_tokens: int  # video tokens for that many frames
    precision: Precision
    target: Target
    opset: int
    graphs: dict[str, GraphEntry]  # video_encoder, decoder
    kv: KVGeometry
    limits: Limits
    weights: dict[str, dict[str, WeightCount]]  # graph -> dtype -> count
    parity: dict[str, Any] | None  # summary of reports/parity.json; None: not checked
    calibration: dict[str, Any] | None = None  # data, settings and recipe; None: no graph is quantised
    files: dict[str, FileEntry] = field(default_factory=dict)  # filled in by ``BundleWriter.publish``
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        _check(self)

    def weights_bytes(self, graph: str) -> int:
        """Bytes of the stored weights of a graph, not counting anything else in its files."""
        return sum(count.size_bytes for count in self.weights.get(graph, {}).values())

    @property
    def size_bytes(self) -> int:
        """Bytes of all listed files."""
        return sum(entry.size_bytes for entry in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The contents of ``manifest.json``, as a plain dict."""
        return dataclasses.asdict(self)

    def save(self, path: Path) -> None:
        """Writes ``manifest.json``.

        Raises:
            ArtifactError: a number in ``parity`` is NaN or infinite, or the manifest is too large to be read back.
        """
        try:
            text = strict_json.dumps(self.to_dict())
        except (ValueError, TypeError) as error:
            raise ArtifactError(f"the manifest cannot be written as JSON: {error}") from error
        if len(text.encode("utf-8")) > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"the manifest is longer than {MAX_MANIFEST_BYTES} bytes; shorten the parity summary")
        path.write_text(text, "utf-8")

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Reads ``manifest.json``.

        Raises:
            ArtifactMissingError: the file does not exist.
            ArtifactVersionError: written with a schema that this version does not read.
            ArtifactError: too large, not JSON, an unknown or missing key, or a value that a bundle cannot have.
        """
        if not path.is_file():
            raise ArtifactMissingError(
                f"{path} does not exist, so {path.parent} is not a bundle; make one with `blip3v export`"
            )
        size = path.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise ArtifactError(f"{path} has {size} bytes; a manifest has at most {MAX_MANIFEST_BYTES}")
        try:
            values = strict_json.read_json(path)
            version = values.get("schema_version")
            if version != SCHEMA_VERSION or isinstance(version, bool):
                raise ArtifactVersionError(
                    f"{path} has schema_version {version!r}; this blip3v reads {SCHEMA_VERSION}; "
                    f"{old_manifest.advice(values, path.parent)}"
                )
            return strict_json.from_dict(cls, values, str(path))
        except ConfigError as error:
            raise ArtifactError(f"{error}; run `blip3v export` again") from error


def _check(manifest: Manifest) -> None:
    for name, count in (("num_frames", manifest.num_frames), ("num_video_tokens", manifest.num_video_tokens)):
        if count < 1:
            raise ConfigError(f"manifest: {name} is {count}; at least 1 is needed")
    if set(manifest.graphs) != set(layout.GRAPHS):
        raise ConfigError(f"manifest: graphs are {sorted(manifest.graphs)}; {' and '.join(layout.GRAPHS)} are needed")
    for name, graph in manifest.graphs.items():
        if graph.file != layout.graph_file(name):
            raise ConfigError(f"manifest: graph {name} is in {graph.file!r}; {layout.graph_file(name)} is expected")
        for spec in (*graph.inputs, *graph.outputs):
            if spec.dtype in SYMBOLIC_DTYPES:
                raise ConfigError(f"manifest: {spec.name} of {name} is {spec.dtype!r}; a dtype is needed")
    for name, entry in manifest.files.items():
        _check_file(name, entry)
    if re.search(r"[/\\]", manifest.source.name):
        raise ConfigError(f"manifest: source is {manifest.source.name!r}; a name without a path is needed")
    for name, digest in manifest.source.sha256.items():
        _check_digest(name, digest)


def _check_file(name: str, entry: FileEntry) -> None:
    if not layout.is_hashed(name):
        raise ConfigError(f"manifest: the file {name!r} cannot be part of a bundle")
    if entry.size_bytes < 0:
        raise ConfigError(f"manifest: {name} has a size of {entry.size_bytes} bytes")
    _check_digest(name, entry.sha256)


def _check_digest(name: str, digest: str) -> None:
    if not _SHA256.fullmatch(digest):
        raise ConfigError(f"manifest: sha256 of {name} is {digest!r}; 64 lower-case hex digits are expected")
