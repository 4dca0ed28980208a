"""ONNX Runtime on the CPU: package, session options, exceptions, and the KV cache that it writes in place.

Nothing else in blip3v runs graphs with ONNX Runtime. It is imported when a graph is opened, never before, so that
importing ``blip3v.runtime`` stays light and works where ONNX Runtime is not installed.

Letters: B rows, t new tokens, D width, V logits, F frames, M video tokens, S side.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import past_key, past_value, present_key, present_value
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import TARGETS
from blip3v.config import TextConfig
from blip3v.errors import ProviderError
from blip3v.extras import pip_command, pip_line
from blip3v.runtime.backends import (
    PREFILL_CHUNK,
    Execution,
    FloatArray,
    FoundTensor,
    GraphFile,
    GraphName,
    check_io,
    product_dtype,
    still_open,
)
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.engine_errors import engine_errors, path_for_engine
from blip3v.runtime.host_cache import KVCache, cache_bytes, pad_prompts

__all__ = ["BACKEND", "OnnxRuntimeSession", "load_onnxruntime", "resident_bytes", "use_mmap"]

# Tokens by which the capacity of a cache grows.
_CACHE_STEP = 64
# Widening fp16 weights on one core of a server, or packing others for the products on two; mapped ones are read later.
_WIDEN_S_PER_GIB = 5.2
_PACK_S_PER_GIB = 2.2

_WIDENED = {"float16": 2}  # format of weights that are widened -> size of the copy, in units of the stored bytes
_MAPPABLE = frozenset({"float32"})  # formats of weights that can be used as they lie in their file
_MAPPED_ABOVE_BYTES = 2**30

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_PROVIDER = "CPUExecutionProvider"
_engine_errors = functools.partial(engine_errors, "ONNX Runtime", "onnxruntime")
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(int8)": "int8",
}


class OnnxRuntimeBackend:
    """See ``Backend``. On x86 it has no fp16 matrix product: graphs stored in fp16 are computed in fp32.

    It runs the graphs of every target, so that one exported for TensorRT can be checked where TensorRT is not.

    Weights in blocks are multiplied by inputs that its kernel rounds to int8, with a scale for each row and block.
    """

    name = "onnxruntime"
    devices = ("cpu",)
    targets = TARGETS
    rank: Mapping[GraphName, int] = {"video_encoder": 1, "decoder": 2}

    def is_installed(self) -> bool:
        """See ``Backend``."""
        return any(_version(name) is not None for name in _PACKAGES)

    def check_installed(self) -> None:
        """See ``Backend``."""
        load_onnxruntime()

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``."""
        return None

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``."""
        versions = [version for version in map(_version, _PACKAGES) if version is not None]
        version = versions[0] if versions else None
        dtype = product_dtype(precision.weights)
        return Execution(backend=self.name, engine="ONNX Runtime", version=version, device="CPU", dtype=dtype)

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``."""
        return product_dtype(weights)

    def resident_bytes(self, graph: GraphFile) -> int:
        """See ``Backend``."""
        return resident_bytes(graph.weights_bytes, graph.precision)

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        if use_mmap(graph.weights_bytes, graph.precision):
            return 0.0
        per_gib = _WIDEN_S_PER_GIB if graph.precision.weights in _WIDENED else _PACK_S_PER_GIB
        return per_gib * graph.weights_bytes / 2**30

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """See ``Backend``."""
        return cache_bytes(text, _cache_dtype(graph), 1, 1)

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> OnnxRuntimeVideoEncoder:
        """See ``Backend``."""
        return OnnxRuntimeVideoEncoder(
            _OpenGraph(graph, threads, spin_after_run=False), self.execution(graph.precision)
        )

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> OnnxRuntimeDecoder:
        """See ``Backend``."""
        return OnnxRuntimeDecoder(
            _OpenGraph(graph, threads, spin_after_run=True), self.execution(graph.precision), text, chunk
        )


BACKEND = OnnxRuntimeBackend()


class OnnxRuntimeVideoEncoder:
    """See ``VideoEncoder``."""

    def __init__(self, graph: _OpenGraph, execution: Execution) -> None:
        self._graph: _OpenGraph | None = graph
        self.execution = execution

    def run(self, frames_BF3SS: NDArray[np.float32], deadline: Deadline) -> dict[str, FloatArray]:
        """See ``VideoEncoder``."""
        graph = still_open(self._graph, "video encoder")
        frames = np.ascontiguousarray(frames_BF3SS, graph.dtype)
        with graph.running("running the video encoder", deadline) as options:
            return dict(zip(graph.outputs, graph.session.run(None, {"frames": frames}, options), strict=True))

    def close(self) -> None:
        """See ``VideoEncoder``."""
        self._graph = None


class OnnxRuntimeDecoder:
    """See ``Decoder``."""

    def __init__(self, graph: _OpenGraph, execution: Execution, text: TextConfig, chunk: int) -> None:
        self.execution = execution
        self.dtype = graph.dtype
        self._graph: _OpenGraph | None = graph
        self._text = text
        self._chunk = chunk

    def session(self, num_rows: int, num_tokens: int) -> OnnxRuntimeSession:
        """See ``Decoder``."""
        graph = still_open(self._graph, "decoder")
        return OnnxRuntimeSession(graph, self._text, self._chunk, num_rows, num_tokens)

    def close(self) -> None:
        """See ``Decoder``."""
        self._graph = None


class OnnxRuntimeSession:
    """See ``DecoderSession``.

    GroupQueryAttention on a CPU takes more than one new token after earlier ones for a single row only. So long prompts
    go in row by row and in chunks; short ones with nothing before them together, padded on the right.
    """

    def __init__(self, graph: _OpenGraph, text: TextConfig, chunk: int, num_rows: int, num_tokens: int) -> None:
        self._open_graph: _OpenGraph | None = graph
        self._text = text
        self._chunk = chunk
        self._cache: KVCache | None = KVCache(text, graph.cache_dtype, num_rows, step=_CACHE_STEP)
        self._cache.reserve(num_tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        """See ``DecoderSession``."""
        return tuple(self.cache.lengths)

    @property
    def cache(self) -> KVCache:
        """The memory behind it."""
        return still_open(self._cache, "decoder session")

    @property
    def _graph(self) -> _OpenGraph:
        return still_open(self._open_graph, "decoder session")

    def reserve(self, num_tokens: int) -> None:
        """See ``DecoderSession``."""
        self.cache.reserve(num_tokens)

    def prefill(self, rows: Sequence[FloatArray], deadline: Deadline) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache = self.cache
        assert len(rows) == cache.rows
        assert all(len(row) for row in rows)
        cache.reserve(max(length + len(row) for length, row in zip(cache.lengths, rows, strict=True)))
        if len(rows) > 1 and max(map(len, rows)) <= self._chunk:
            return self._prefill_padded(rows, deadline)
        return np.concatenate([self._prefill_row(i, row, deadline) for i, row in enumerate(rows)])

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache = self.cache
        cache.reserve(max(cache.lengths) + 1)
        lengths = [length + 1 for length in cache.lengths]
        logits_BV = self._run(0, cache.rows, embeds_BD[:, None], [0] * cache.rows, lengths)
        cache.lengths = lengths
        return logits_BV

    def truncate(self, num_tokens: int) -> None:
        """See ``DecoderSession``."""
        assert self.cache.rows == 1
        assert num_tokens <= self.cache.lengths[0]
        self.cache.lengths = [num_tokens]

    def drop_row(self, row: int) -> None:
        """See ``DecoderSession``."""
        self.cache.drop_row(row)

    def close(self) -> None:
        """See ``DecoderSession``."""
        self._cache = self._open_graph = None

    def _prefill_padded(self, rows: Sequence[FloatArray], deadline: Deadline) -> NDArray[np.float32]:
        assert not any(self.cache.lengths)
        logits_BV = []
        for first, embeds_BtD, lengths in pad_prompts(rows, self._graph.dtype):
            last = first + len(lengths)
            logits_BV.append(self._run(first, last, embeds_BtD, [n - 1 for n in lengths], lengths, deadline))
            self.cache.lengths[first:last] = lengths
        return np.concatenate(logits_BV)

    def _prefill_row(self, row: int, embeds_tD: FloatArray, deadline: Deadline) -> NDArray[np.float32]:
        """One row, chunk by chunk; the others stay as they are. Returns (1,V)."""
        cache = self.cache
        for start in range(0, len(embeds_tD), self._chunk):
            part_tD = embeds_tD[start : start + self._chunk]
            length = cache.lengths[row] + len(part_tD)
            logits_1V = self._run(row, row + 1, part_tD[None], [len(part_tD) - 1], [length], deadline)
            cache.lengths[row] = length
        return logits_1V

    def _run(
        self,
        first: int,
        last: int,
        embeds_BtD: FloatArray,
        logits_index: list[int],
        lengths: list[int],
        deadline: Deadline | None = None,
    ) -> NDArray[np.float32]:
        """Runs the graph on rows ``first`` to ``last`` (exclusive); ``lengths`` include the new tokens."""
        graph = self._graph
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds_BtD, graph.dtype),
            "logits_index": np.array(logits_index, np.int64),
        }
        if graph.takes_write_indices:
            inputs["write_indices"] = np.array(self.cache.lengths[first:last], np.int64)
        else:
            inputs["seqlens_k"] = np.array(lengths, np.int32) - np.int32(1)
            inputs["total_sequence_length"] = np.array(max(lengths), np.int32)
        logits_BV = np.empty((last - first, self._text.num_logits), np.float32)
        with graph.running("running the decoder", deadline) as options:
            binding = graph.onnxruntime.IOBinding(graph.session)
            for name, array in inputs.items():
                binding.bind_ortvalue_input(name, graph.value(array))
            binding.bind_ortvalue_output("logits", graph.value(logits_BV))
            self._bind_cache(binding, first, last)
            graph.session.run_with_iobinding(binding, options)
        return logits_BV

    def _bind_cache(self, binding: Any, first: int, last: int) -> None:
        # The same OrtValue as past and as present: this is what makes the attention write in place.
        for layer in range(self._text.num_layers):
            keys_BHSK, values_BHSK = self.cache.layer(layer, first, last)
            key, value = self._graph.value(keys_BHSK), self._graph.value(values_BHSK)
            binding.bind_ortvalue_input(past_key(layer), key)
            binding.bind_ortvalue_input(past_value(layer), value)
            binding.bind_ortvalue_output(present_key(layer), key)
            binding.bind_ortvalue_output(present_value(layer), value)


class _OpenGraph:
    """One opened ONNX graph. Several threads may run it at once."""

    def __init__(self, graph: GraphFile, threads: int | None, *, spin_after_run: bool) -> None:
        self.onnxruntime = load_onnxruntime()
        options = _session_options(self.onnxruntime, threads, mmap=use_mmap(graph.weights_bytes, graph.precision))
        if not spin_after_run:
            # Threads that wait for the next clip by spinning take the cores from the decoder, which runs next.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        path = path_for_engine(graph.path)
        with _engine_errors(f"opening {path}"):
            # Without its fallback, which prints to stdout and opens the graph a second time.
            session = self.onnxruntime.InferenceSession(path, options, providers=[_PROVIDER], enable_fallback=False)
            inputs, outputs = _found(session.get_inputs()), _found(session.get_outputs())
        if session.get_providers() != [_PROVIDER]:
            raise ProviderError(
                f"{graph.path.name} was to run on {_PROVIDER} and ONNX Runtime took "
                f"{', '.join(session.get_providers())}; install the plain build of it: `{pip_line('cpu')}`"
            )
        self.session: Any = session
        self.outputs = [output.name for output in outputs]
        check_io(inputs, outputs, graph)
        self.takes_write_indices = any(spec.name == "write_indices" for spec in graph.io.inputs)
        self.dtype = np.dtype(graph.precision.io)
        self.cache_dtype = _cache_dtype(graph)

    def value(self, array: NDArray[Any]) -> Any:
        """``array``, which must be contiguous, as an OrtValue that shares its memory and must not outlive it."""
        assert array.flags.c_contiguous
        return self.onnxruntime.OrtValue.ortvalue_from_numpy(array)

    @contextlib.contextmanager
    def running(self, doing: str, deadline: Deadline | None) -> Iterator[Any]:
        """Run options for one run, which ``deadline`` interrupts; exceptions become ours."""
        options = self.onnxruntime.RunOptions()

        def terminate() -> None:
            options.terminate = True

        guard = contextlib.nullcontext() if deadline is None else deadline.interrupting(terminate)
        with guard, _engine_errors(doing):
            yield options


def load_onnxruntime() -> ModuleType:
    """ONNX Runtime.

    Raises:
        ProviderError: no package of it is installed, or two that own the same folder.
    """
    if all(_version(name) is not None for name in _PACKAGES):
        raise ProviderError(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files; keep one: "
            f"`{pip_command('uninstall', '-y', *_PACKAGES)}` and then `{pip_line('cpu')}` or `{pip_line('cuda')}`"
        )
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise ProviderError(
            f"ONNX Runtime cannot be imported ({error}); install one build of it: `{pip_line('cpu')}` for a CPU, "
            f"`{pip_line('cuda')}` for an NVIDIA GPU"
        ) from error


def use_mmap(weights_bytes: int, precision: GraphPrecision) -> bool:
    """Whether a graph is opened so that its weights stay in their mapped file, at the price of a slower prefill.

    The system can drop mapped pages from memory when it needs room.
    """
    return precision.weights in _MAPPABLE and weights_bytes > _MAPPED_ABOVE_BYTES


def resident_bytes(weights_bytes: int, precision: GraphPrecision) -> int:
    """Memory that the weights of an opened graph take, mapped files not included."""
    return 0 if use_mmap(weights_bytes, precision) else weights_bytes * _WIDENED.get(precision.weights, 1)


def _cache_dtype(graph: GraphFile) -> np.dtype[Any]:
    return np.dtype(graph.precision.cache or graph.precision.io)


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.distribution(distribution).version
    except importlib.metadata.PackageNotFoundError:
        return None


def _session_options(onnxruntime: ModuleType, threads: int | None, *, mmap: bool) -> Any:
    options = onnxruntime.SessionOptions()
    if threads is not None:
        options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors only: they reach the caller as exceptions, warnings would go to stderr
    # A memory pattern is kept for every shape of input ever seen, and each prompt length is a new shape.
    options.enable_mem_pattern = False
    if mmap:
        options.add_session_config_entry("session.disable_prepacking", "1")
    else:
        # All threads pack weights: most of opening a large graph. What they read stays mapped until the last is packed.
        options.add_session_config_entry("session.prepack.enable_parallel", "1")
    return options


def _found(nodes: Sequence[Any]) -> list[FoundTensor]:
    """Inputs or outputs of a session; a dtype that the runtime does not know keeps ONNX Runtime's name."""
    return [FoundTensor(node.name, _DTYPES.get(node.type, node.type), tuple(node.shape)) for node in nodes]
