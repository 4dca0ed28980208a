"""Opening a bundle: everything is checked here, once, so that the runtime can trust what it gets.

That is the names, types and sizes of all files, the hashes of those up to 16 MiB, and whether the configs agree. Not
here: the hashes of larger files, which would slow down every start (``verify.py``), and the contents of the graphs,
which engines read. An engine refuses external data outside the graph's folder, and every file there is listed: the
strangers that ``layout.py`` names are not in the folder that engines get (``hub_links.real_files``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from blip3v.bundle import layout
from blip3v.bundle.embeddings import open_embeddings
from blip3v.bundle.graph_io import GraphIO, decoder_io, takes_one_position, video_encoder_io
from blip3v.bundle.manifest import GraphEntry, KVGeometry, Manifest
from blip3v.bundle.scan import hash_file, scan
from blip3v.config import ModelConfig
from blip3v.errors import ArtifactError, ArtifactHashError, ArtifactMissingError, ConfigError
from blip3v.folders import check_bundle
from blip3v.text.generation import GenerationConfig
from blip3v.text.tokenizer import Tokenizer
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Bundle", "open_bundle"]

HASH_ON_OPEN_BYTES = 16 * 2**20
_MAX_TEMPLATE_BYTES = 2**16
_LFS_POINTER = b"version https://git-lfs"
_AGAIN = "copy the bundle again, or run `blip3v export` again"


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An opened bundle, made by ``open_bundle``."""

    path: Path
    manifest: Manifest
    config: ModelConfig
    generation: GenerationConfig
    preprocessor: PreprocessorConfig
    chat_template: str

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read on first use.

        Raises:
            ArtifactError: not a tokenizer, or its size is not the model's.
        """
        path = self.path / layout.TOKENIZER
        tokenizer = Tokenizer.load(path)
        text = self.config.text
        if (tokenizer.num_tokens, tokenizer.image_id) != (text.num_logits, text.num_base_tokens):
            raise ArtifactError(
                f"{path} has {tokenizer.num_tokens} tokens and <image> at {tokenizer.image_id}; the model has "
                f"{text.num_logits} and {text.num_base_tokens}; run `blip3v export` again"
            )
        return tokenizer

    def graph_io(self, name: str) -> GraphIO:
        """Inputs and outputs of a graph, which for the decoder of an earlier version are those of ``one_position``."""
        config, manifest = self.config, self.manifest
        if name == "video_encoder":
            return video_encoder_io(config, manifest.target)
        one_position = takes_one_position(manifest.graphs[name].inputs)
        return decoder_io(config, manifest.target, one_position=one_position)

    def graph_files(self, name: str) -> list[str]:
        """Names of the files of the graph ``name``: its ONNX file, then its external data in order."""
        return layout.graph_files(name, self.manifest.files)

    def embeddings(self) -> npt.NDArray[np.floating]:
        """Memory-mapped embedding table (V, D), read-only; row i: token id i.

        Raises:
            ArtifactError: the table's shape is not the model's, or its dtype not the precision's.
        """
        path = self.path / layout.EMBEDDINGS
        table_VD = open_embeddings(path)
        expected = (self.config.text.num_logits, self.config.text.hidden_size)
        dtype = self.manifest.precision.decoder.embeddings
        if table_VD.shape != expected or table_VD.dtype.name != dtype:
            raise ArtifactError(
                f"{path} is {table_VD.dtype} {table_VD.shape}; the bundle needs {dtype} {expected}; "
                "run `blip3v export` again"
            )
        return table_VD


def open_bundle(path: Path) -> Bundle:
    """Opens a bundle.

    Raises:
        ArtifactMissingError: there is no bundle, or one of its files is missing.
        ArtifactHashError: a file has changed since it was written.
        ArtifactVersionError: written with a schema that this version does not read.
        ArtifactError: anything else that is wrong, such as a link or an unknown file in the folder.
    """
    check_bundle(path)
    sizes = scan(path)
    manifest = Manifest.load(path / layout.MANIFEST)
    check_names(path, manifest, sizes)
    for name, entry in manifest.files.items():
        if sizes[name] != entry.size_bytes:
            what_to_do = "run `git lfs pull`" if _is_lfs_pointer(path / name) else _AGAIN
            raise ArtifactHashError(
                f"{path / name} has {sizes[name]} bytes; {entry.size_bytes} were written; {what_to_do}"
            )
    for name, entry in manifest.files.items():
        if entry.size_bytes <= HASH_ON_OPEN_BYTES and hash_file(path / name) != entry.sha256:
            raise ArtifactHashError(f"{path / name} is not the file that was written (sha256 differs); {_AGAIN}")
    return _read(path, manifest)


def _is_lfs_pointer(path: Path) -> bool:
    """Whether git has put a few lines in place of a large file."""
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def check_names(path: Path, manifest: Manifest, sizes: dict[str, int]) -> None:
    """Checks that the files in the folder are the ones that the manifest lists.

    Raises:
        ArtifactMissingError: a file is missing, from the folder or from the manifest.
        ArtifactError: the folder contains a file that the manifest does not list.
    """
    for name in layout.REQUIRED_FILES:
        if name not in manifest.files:
            raise ArtifactMissingError(f"{path / layout.MANIFEST} does not list {name}; {_AGAIN}")
    for name in manifest.files:
        if name not in sizes:
            raise ArtifactMissingError(f"{path / name} is missing; {_AGAIN}")
    extra = [name for name in sizes if name not in manifest.files and name != layout.MANIFEST]
    unknown = [name for name in extra if not layout.is_derived(name)]
    if unknown:
        raise ArtifactError(f"{path} contains {', '.join(unknown[:8])}, which its manifest does not list; move it away")


def _read(path: Path, manifest: Manifest) -> Bundle:
    try:
        bundle = Bundle(
            path=path,
            manifest=manifest,
            config=ModelConfig.load(path / layout.CONFIG),
            generation=GenerationConfig.load(path / layout.GENERATION),
            preprocessor=PreprocessorConfig.load(path / layout.PREPROCESSOR),
            chat_template=_template(path / layout.CHAT_TEMPLATE),
        )
    except ConfigError as error:
        raise ArtifactError(f"{error}; {_AGAIN}") from error
    _check_agreement(bundle)
    return bundle


def _template(path: Path) -> str:
    if path.stat().st_size > _MAX_TEMPLATE_BYTES:
        raise ArtifactError(f"{path} has {path.stat().st_size} bytes; at most {_MAX_TEMPLATE_BYTES} are allowed")
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8: {error}; {_AGAIN}") from error


def _check_agreement(bundle: Bundle) -> None:
    """The manifest repeats what the configs say; a bundle pieced together from two would give nonsense answers."""
    config, manifest = bundle.config, bundle.manifest
    pairs = {
        "model": (manifest.model, config.name),
        "encoder": (manifest.encoder, config.temporal.encoder),
        "num_frames": (manifest.num_frames, config.num_frames),
        "num_video_tokens": (manifest.num_video_tokens, config.temporal.num_video_tokens),
        "max_context": (manifest.limits.max_context, config.text.max_context),
        "kv": (manifest.kv, KVGeometry.of(config, manifest.precision.decoder)),
        "image_size": (bundle.preprocessor.image_size, config.vision.image_size),
    }
    for name, (value, expected) in pairs.items():
        if value != expected:
            raise ArtifactError(f"{bundle.path}: {name} is {value}, but config.json says {expected}; {_AGAIN}")
    for name, graph in manifest.graphs.items():
        if graph != GraphEntry.of(name, bundle.graph_io(name), manifest.precision.graphs[name]):
            raise ArtifactError(
                f"{bundle.path}: the inputs and outputs of {name} in the manifest do not match config.json at "
                f"{manifest.precision.graphs[name].name}; {_AGAIN}"
            )
