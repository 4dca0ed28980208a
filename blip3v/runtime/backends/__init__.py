"""The seam to inference engines: what a back end offers.

A back end is a module of this package with an object ``BACKEND``; every module here is one. It opens the two graphs of
a bundle. The opened video encoder takes frames. The opened decoder makes sessions: a session holds the rows of one
request and owns their KV cache, wherever that memory is. Everything above (requests, generation, chat, batches) knows
these protocols alone. Which ones there are, and which one ``auto`` takes: ``runtime/backend_choice.py``.

To add one see "Adding a back end" in CONTRIBUTING.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import GraphIO, TensorSpec
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import DEFAULT_TARGET, Target
from blip3v.config import TextConfig
from blip3v.errors import ArtifactError, UsageError
from blip3v.runtime.backend_choice import (
    AUTO,
    GRAPHS,
    GraphName,
    backend_names,
    choose_backend,
    get_backend,
    parse_backends,
    settings_to_try,
    stored_and_computed,
    with_settings,
)
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.gpu_array import GpuArray
from blip3v.runtime.memory import HOST, Memory

__all__ = [
    "AUTO",
    "GRAPHS",
    "MAX_DRAFT_TOKENS",
    "PREFILL_CHUNK",
    "Backend",
    "Decoder",
    "DecoderSession",
    "Execution",
    "FloatArray",
    "Footprint",
    "FoundTensor",
    "GraphFile",
    "GraphName",
    "PromptRow",
    "SplicedPrompt",
    "VideoEncoder",
    "backend_names",
    "check_io",
    "choose_backend",
    "get_backend",
    "host_prompts",
    "parse_backends",
    "product_dtype",
    "settings_to_try",
    "still_open",
    "stored_and_computed",
    "with_settings",
]

FloatArray = NDArray[np.float16] | NDArray[np.float32]
_Part = TypeVar("_Part")

# Format of the weights -> inputs by weights. Inputs of blocks are rounded as they come, with a scale for each block.
_PRODUCT_DTYPES = {"int8": "int8", "int8-block": "int8", "int4-block": "int8 by int4"}
# Tokens of a prompt that go through a decoder at once: bounds the memory of activations and the time to a cancellation.
PREFILL_CHUNK = 256
# Guessed tokens that a run of the decoder verifies at most, behind the token that is known.
MAX_DRAFT_TOKENS = 32


@dataclass(frozen=True, kw_only=True)
class Execution:
    """What a graph is really computed with."""

    backend: str  # as ``backend=`` takes it, for example "onnxruntime"
    engine: str  # its name for people, for example "ONNX Runtime"
    version: str | None  # of the engine; None: not installed
    device: str  # as the engine names it, for example "CPU"
    dtype: str  # of matrix products, for example "fp32"

    def __str__(self) -> str:
        return f"{self.dtype} on {self.engine} {self.device}"


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One graph on disk."""

    path: Path  # the .onnx file; its weights lie beside it
    io: GraphIO
    precision: GraphPrecision
    weights_bytes: int  # as they are stored
    digest: str = ""  # hash of the graph's files, which an engine built from them names; "": not part of a bundle
    engines: Path | None = None  # the folder of the bundle's engines, which may not exist
    target: Target = DEFAULT_TARGET
    extra_outputs: tuple[
        str, ...
    ] = ()  # in addition to those of ``io``: the stages, in the copy that the parity check makes


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """What an opened graph takes, and of which memory. Estimates.

    The ``memory`` of a device that has none of its own is the machine's, and so counted once.
    """

    weights_bytes: int  # in ``memory``; file pages that the system can drop not included
    memory: Memory = HOST  # where weights and activations lie
    host_bytes: int = 0  # of the machine's memory in addition
    activation_bytes: int | None = None  # that the engine holds for its largest run; None: not known
    caches: Memory = HOST  # where the KV caches of a decoder lie
    row_tokens: int = 0  # that each row of a cache has room for, however few it holds; 0: as many as are asked for


class FoundTensor(NamedTuple):
    """An input or output as an engine describes it."""

    name: str
    dtype: str  # as numpy names it
    axes: Sequence[object]  # an int is fixed, anything else is free


@dataclass(frozen=True, eq=False)
class SplicedPrompt:
    """A prompt of t tokens whose video tokens are on the GPU, in ``Decoder.gpu_dtype``. Letters: M video tokens."""

    text_TD: FloatArray  # embeddings of the t - M tokens of text, in host memory
    position: int  # tokens of text before the video tokens
    video: GpuArray  # (M,D)

    def __len__(self) -> int:
        return len(self.text_TD) + len(self.video)


PromptRow = FloatArray | SplicedPrompt  # (t,D)


class VideoEncoder(Protocol):
    """The opened video encoder. Several threads may use it at once."""

    execution: Execution
    gpu_dtype: np.dtype[Any] | None  # of frames on the first CUDA GPU, read where they are; None: host memory alone

    def run(self, frames_BF3SS: NDArray[np.float32] | GpuArray, deadline: Deadline) -> dict[str, FloatArray]:
        """Every output of the graph by name, ``video_tokens`` (B,M,D) among them.

        Args:
            frames_BF3SS: pixels in [-1, 1], B clips of F frames; on the GPU only in ``gpu_dtype``.
            deadline: interrupts the engine.

        Raises:
            BackendError: the engine failed.
            CancelledError, RequestTimeoutError: from ``deadline``, soon after it passed.
        """
        ...

    def close(self) -> None:
        """Lets the weights go as soon as no call is running. Afterwards every other call is a ``UsageError``."""
        ...


class DecoderSession(Protocol):
    """The token rows of one request with their KV cache. One thread at a time.

    A prefill that raises may have appended a part of its prompt: ``truncate`` undoes that for a single row.
    """

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens that each row holds."""
        ...

    def reserve(self, num_tokens: int) -> None:
        """Makes room for ``num_tokens`` in each row, tokens that are there included.

        Raises:
            OutOfMemoryError: it does not fit into memory.
        """
        ...

    def prefill(self, rows: Sequence[PromptRow], deadline: Deadline) -> NDArray[np.float32]:
        """Appends a prompt to each row.

        Args:
            rows: embeddings (t,D) of at least one token for each row; a ``SplicedPrompt`` only if the decoder has a
                ``gpu_dtype``. A single row may hold earlier tokens; several rows must be empty.
            deadline: checked between chunks; interrupts the engine.

        Returns:
            Logits (B,V) after the last token of each row.

        Raises:
            BackendError: the engine failed.
            CancelledError, RequestTimeoutError: from ``deadline``, soon after it passed.
        """
        ...

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """Appends one token to each row and returns the logits (B,V) after it.

        Raises:
            BackendError: the engine failed.
        """
        ...

    def verify(self, embeds_tD: FloatArray) -> NDArray[np.float32]:
        """Appends t tokens to the only row, in one run, and returns the logits (t,V) after each of them.

        Args:
            embeds_tD: of 1 to ``max_verified`` of the decoder. ``truncate`` takes back those that were wrong.

        Raises:
            BackendError: the engine failed.
        """
        ...

    def truncate(self, num_tokens: int) -> None:
        """Forgets every token of the only row after the first ``num_tokens``."""
        ...

    def drop_row(self, row: int) -> None:
        """Removes a finished row: the last row takes its place."""
        ...

    def close(self) -> None:
        """Releases the cache. May be called more than once; afterwards every other call is a ``UsageError``."""
        ...


class Decoder(Protocol):
    """The opened decoder. Several threads may use it at once, each with sessions of its own."""

    execution: Execution
    dtype: np.dtype[Any]  # of the embeddings that it takes: float32 or float16
    gpu_dtype: np.dtype[Any] | None  # of video tokens on the first CUDA GPU; None: host memory alone
    max_rows: int | None  # of a session; None: as many as fit into memory
    max_verified: int  # tokens that ``verify`` takes at once; 1: the graph gives the logits of one position of each row
    memory: Memory  # where the caches of its sessions lie
    token_bytes: int  # keys and values of one token in all layers
    row_tokens: int  # that each row of a cache has room for, however few it holds; 0: as many as are asked for

    def session(self, num_rows: int, num_tokens: int) -> DecoderSession:
        """A new session of ``num_rows`` empty rows with room for ``num_tokens`` each, to be closed by the caller.

        Raises:
            OutOfMemoryError: the cache does not fit into memory.
        """
        ...

    def close(self) -> None:
        """Frees the weights with the last open session. Afterwards every other call is a ``UsageError``."""
        ...


class Backend(Protocol):
    """An inference engine. Its package is imported when it is needed, never when the module is.

    A module whose engine runs on several devices has, beside ``BACKEND``, which runs on the first, a function
    ``on_device`` that takes another one and returns the back end for that. A module whose engine has settings that may
    make it faster has ``settings_to_try`` and ``with_settings``, as ``runtime/backend_choice.py`` describes them.
    """

    name: str  # as ``backend=`` takes it: the module's with "-" for "_", and ":DEVICE" unless on its first device
    devices: tuple[str, ...]  # that it runs on, as ``device=`` takes them
    targets: tuple[Target, ...]  # whose graphs it runs
    rank: Mapping[GraphName, int]  # ``auto`` takes the highest of those installed

    def is_installed(self) -> bool:
        """Whether the engine's package is there, working or not, and the device; ``auto`` passes over the others."""
        ...

    def check_installed(self) -> None:
        """Raises unless the engine can be imported and has the device.

        Raises:
            ProviderError: says what to install.
        """
        ...

    def refusal(self, precision: GraphPrecision) -> str | None:
        """Why the engine does not run graphs of this precision, and what to choose instead; None: it does."""
        ...

    def execution(self, precision: GraphPrecision) -> Execution:
        """What a graph of this precision is computed with, or would be if the engine were installed."""
        ...

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """What the matrix product of a linear layer is computed in, as ``Execution.dtype`` says it.

        Args:
            precision: of its graph.
            weights: the format that its weights are stored in.
            group_size: inputs that share a scale; None: all of an output channel, or floats.
            num_inputs: of the layer.
        """
        ...

    def footprint(self, graph: GraphFile) -> Footprint:
        """What the opened graph takes of the memory of the machine and of the device. May ask the device.

        Raises:
            ArtifactError: what the back end opens instead of the graph is damaged; or, an ``ArtifactMissingError``, has
                to be built first.
        """
        ...

    def open_s(self, graph: GraphFile) -> float:
        """Seconds that opening takes on one core of a server, roughly."""
        ...

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """Keys and values of one token in all layers."""
        ...

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> VideoEncoder:
        """Opens the video encoder.

        Args:
            graph: the file.
            threads: inside an operator; None: one for each physical core.

        Raises:
            ProviderError: the engine is not installed, or cannot run on the device.
            ArtifactError: the graph's inputs or outputs are not those of ``graph.io``.
            BackendError: the engine cannot open it.
        """
        ...

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> Decoder:
        """Opens the decoder. Other arguments and errors as for ``open_video_encoder``.

        Args:
            graph: the file.
            text: its geometry.
            threads: inside an operator; None: one for each physical core.
            chunk: tokens of a prompt that go through the graph at once, at most.
        """
        ...


def product_dtype(weights: str) -> str:
    """What both factors of a matrix product are on a CPU, for ``Execution.dtype``; ``weights`` is their format."""
    return _PRODUCT_DTYPES.get(weights, "fp32")


def still_open(part: _Part | None, what: str) -> _Part:
    """What an object works with, which its ``close`` sets to None.

    Args:
        part: the object's own, or None.
        what: the object, for the message.

    Raises:
        UsageError: the object is closed.
    """
    if part is None:
        raise UsageError(f"the {what} is closed; open another one")
    return part


def host_prompts(rows: Sequence[PromptRow]) -> list[FloatArray]:
    """``rows`` for a back end without a ``gpu_dtype``, which is given no others."""
    prompts = [row for row in rows if not isinstance(row, SplicedPrompt)]
    assert len(prompts) == len(rows)
    return prompts


def check_io(inputs: Sequence[FoundTensor], outputs: Sequence[FoundTensor], graph: GraphFile) -> None:
    """Compares an opened graph with what its bundle says it is.

    Args:
        inputs: of the opened graph, in any order.
        outputs: likewise.
        graph: the file, with the inputs and outputs that it has to have.

    Raises:
        ArtifactError: they differ.
    """
    wanted = graph.io.resolved(graph.precision)
    for kind, specs, tensors in (("input", wanted.inputs, inputs), ("output", wanted.outputs, outputs)):
        by_name = {tensor.name: tensor for tensor in tensors if tensor.name not in graph.extra_outputs}
        if set(by_name) != {spec.name for spec in specs}:
            odd = sorted(set(by_name) ^ {spec.name for spec in specs})
            raise ArtifactError(
                f"{graph.path} has other {kind}s than this blip3v expects (differing: {', '.join(odd[:6])}); "
                "export it again"
            )
        for spec in specs:
            _check_tensor(spec, by_name[spec.name], graph.path)


def _check_tensor(spec: TensorSpec, found: FoundTensor, path: Path) -> None:
    if found.dtype != spec.dtype:
        raise ArtifactError(f"{path}: {spec.name} is {found.dtype}; expected {spec.dtype}; export it again")
    fixed = [(want, got) for want, got in zip(spec.axes, found.axes, strict=False) if isinstance(want, int)]
    if len(found.axes) != len(spec.axes) or any(isinstance(got, int) and got != want for want, got in fixed):
        raise ArtifactError(
            f"{path}: {spec.name} has shape {list(found.axes)}; expected {list(spec.axes)}; export it again"
        )
