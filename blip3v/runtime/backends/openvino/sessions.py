"""The opened graphs on OpenVINO, and decoder sessions that hold their KV cache in numpy arrays.

Not here: how the decoder graph is rewritten for that (``graph.py``). Letters: B rows, t new tokens, N positions of
all rows, S cache capacity, G KV heads, K head width, D width, V logits, F frames, M video tokens.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from blip3v.bundle.graph_io import past_key, past_value, takes_one_position
from blip3v.config import TextConfig
from blip3v.runtime.backends import Execution, FloatArray, GraphFile, PromptRow, host_prompts, still_open
from blip3v.runtime.backends.openvino import cache_dtype, computes_in_fp16
from blip3v.runtime.backends.openvino.graph import compute_in_fp32, read_decoder, read_model
from blip3v.runtime.cached_session import CachedSession
from blip3v.runtime.cancellation import Deadline, held
from blip3v.runtime.engine_errors import engine_errors
from blip3v.runtime.gpu_array import GpuArray
from blip3v.runtime.host_cache import KVCache, cache_bytes, pad_prompts
from blip3v.runtime.memory import HOST

__all__ = ["OpenVinoDecoder", "OpenVinoSession", "OpenVinoVideoEncoder"]

# How long a run goes on after its deadline, besides the operator that is being computed.
_POLL_MS = 20
# Tokens by which the capacity of a cache grows.
_CACHE_STEP = 128
_engine_errors = functools.partial(engine_errors, "OpenVINO", "openvino")
_BINDINGS = threading.Lock()


class OpenVinoVideoEncoder:
    """See ``VideoEncoder``."""

    gpu_dtype: np.dtype[Any] | None = None

    def __init__(self, graph: GraphFile, execution: Execution, threads: int | None, *, in_bf16: bool = False) -> None:
        self.execution = execution
        self._dtype = np.dtype(graph.precision.io)
        with _engine_errors(f"opening {graph.path}"):
            core = open_core(graph, threads, execution.device, in_bf16=in_bf16)
            model = read_model(core, graph)
            compute_in_fp32(model)
            self._outputs = [output.any_name for output in model.outputs]
            self._compiled: Any | None = core.compile_model(model, execution.device)
        self._spare: list[Any] = []  # requests that nobody runs: each holds the memory of its activations
        self._lock = threading.Lock()

    def run(self, frames_BF3SS: NDArray[np.float32] | GpuArray, deadline: Deadline) -> dict[str, FloatArray]:
        """See ``VideoEncoder``."""
        assert isinstance(frames_BF3SS, np.ndarray)
        with _engine_errors("running the video encoder"), self._request() as request:
            request.set_tensor("frames", _tensor(np.ascontiguousarray(frames_BF3SS, np.float32)))
            deadline.check()
            _infer(request, deadline)
            return {name: request.get_tensor(name).data.astype(self._dtype) for name in self._outputs}

    def close(self) -> None:
        """See ``VideoEncoder``."""
        with self._lock:
            self._spare, self._compiled = [], None

    @contextlib.contextmanager
    def _request(self) -> Iterator[Any]:
        with self._lock:
            compiled = still_open(self._compiled, "video encoder")
            request = self._spare.pop() if self._spare else compiled.create_infer_request()
        yield request
        with self._lock:
            if self._compiled is not None:  # it may have been closed meanwhile
                self._spare.append(request)


class OpenVinoDecoder:
    """See ``Decoder``."""

    max_rows: int | None = None
    gpu_dtype: np.dtype[Any] | None = None
    memory = HOST
    row_tokens = 0

    def __init__(
        self,
        graph: GraphFile,
        execution: Execution,
        text: TextConfig,
        threads: int | None,
        chunk: int,
        *,
        in_bf16: bool = False,
    ) -> None:
        self.execution = execution
        self.dtype = np.dtype(graph.precision.io)
        self.token_bytes = cache_bytes(text, cache_dtype(graph), 1, 1)
        self.max_verified = 1 if takes_one_position(graph.io.inputs) else chunk
        with _engine_errors(f"opening {graph.path}"):
            core = open_core(graph, threads, execution.device, in_bf16=in_bf16)
            self._compiled: _CompiledDecoder | None = _CompiledDecoder(core, graph, execution.device, text, chunk)

    def session(self, num_rows: int, num_tokens: int) -> OpenVinoSession:
        """See ``Decoder``."""
        return OpenVinoSession(still_open(self._compiled, "decoder"), num_rows, num_tokens)

    def close(self) -> None:
        """See ``Decoder``."""
        self._compiled = None


class _CompiledDecoder:
    """The compiled graph, which every session holds. Runs of several sessions queue up for the same cores."""

    def __init__(self, core: Any, graph: GraphFile, device: str, text: TextConfig, chunk: int) -> None:
        self.chunk = chunk
        self.text = text
        self.cache_dtype = cache_dtype(graph)
        rewritten = read_decoder(core, graph)
        self.window = rewritten.window
        self._request: Any = core.compile_model(rewritten.model, device).create_infer_request()
        self._lock = threading.Lock()
        self._last_sizes = _sizes(0, 0, 0)  # of the last run that came to its end
        self._run_once(_sizes(0, 0, 0))  # weights are packed by the first run, which no request should wait for

    def run(self, inputs: dict[str, NDArray[Any]], deadline: Deadline) -> list[NDArray[Any]]:
        """Returns the logits of all chosen positions, then the new key and value (B,G,t,K) of each layer.

        Args:
            inputs: as ``RewrittenDecoder`` lists them.
            deadline: interrupts the run.
        """
        num_rows, num_new = inputs["positions"].shape
        sizes = _sizes(num_rows, num_new, inputs["mask"].shape[3])
        with held(self._lock, deadline), _engine_errors("running the decoder"):
            try:
                outputs = self._infer(inputs, deadline)
            except BaseException:
                self._run_once(sizes)
                raise
            self._last_sizes = sizes
            return outputs

    def _infer(self, inputs: dict[str, NDArray[Any]], deadline: Deadline) -> list[NDArray[Any]]:
        for name, array in inputs.items():
            # Caches are read where they are: each run of this request sets all of them anew.
            self._request.set_tensor(name, openvino.Tensor(array, shared_memory=True))
        _infer(self._request, deadline)
        return [tensor.data.copy() for tensor in self._request.output_tensors]

    def _run_once(self, interrupted: tuple[int, ...]) -> None:
        """Makes the compiled graph forget the sizes of a run that ended early.

        A node infers its shapes anew only if they differ from those that it last ran with. In a run that ends early
        some nodes have inferred and not run, and would pass on shapes of that run to the next one, if that one is like
        the run before. One run whose sizes neither of the two had makes all of them infer.
        """
        taken = {*interrupted, *self._last_sizes}
        size = next(size for size in range(2, 100) if not set(_sizes(size, size, 2 * size)) & taken)
        text = self.text
        past = np.zeros((size, text.num_kv_heads, size, text.head_dim), self.cache_dtype)
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.zeros((1, size * size, text.hidden_size), np.float32),
            "positions": np.zeros((size, size), np.int32),
            "mask": np.zeros((size, 1, size, 2 * size), np.float32),
            "logits_index": np.zeros(size, np.int64),
            **{name(layer): past for layer in range(text.num_layers) for name in (past_key, past_value)},
        }
        self._infer(inputs, Deadline())
        self._last_sizes = _sizes(size, size, 2 * size)


def _sizes(num_rows: int, num_new: int, num_seen: int) -> tuple[int, ...]:
    """What the shapes of one run depend on: rows, new tokens per row and in all, slots and new tokens that one sees."""
    return num_rows, num_new, num_rows * num_new, num_seen


class OpenVinoSession(CachedSession[_CompiledDecoder, KVCache]):
    """See ``DecoderSession``. A run that was interrupted or failed leaves the session as it was before.

    Short prompts with nothing before them go in together, padded on the right, others row by row and in chunks.
    """

    def __init__(self, decoder: _CompiledDecoder, num_rows: int, num_tokens: int) -> None:
        # Attention costs what the capacity is, not what is used: it grows with use, in small steps.
        super().__init__(decoder, KVCache(decoder.text, decoder.cache_dtype, num_rows, step=_CACHE_STEP))
        self.reserve(num_tokens)

    def reserve(self, num_tokens: int) -> None:
        """Only checks that the memory is there: the cache grows as tokens come."""
        self.cache.check_memory(num_tokens)

    def prefill(self, rows: Sequence[PromptRow], deadline: Deadline) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        assert len(rows) == self.cache.rows
        assert all(len(row) for row in rows)
        prompts = host_prompts(rows)
        before = list(self.cache.lengths)
        try:
            if len(prompts) > 1 and max(map(len, prompts)) <= self.engine.chunk:
                return self._prefill_padded(prompts, deadline)
            return np.concatenate([self._prefill_row(i, row, deadline) for i, row in enumerate(prompts)])
        except BaseException:
            self.cache.lengths = before
            raise

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        return self._run(0, embeds_BD[:, None], [1] * self.cache.rows, Deadline())

    def verify(self, embeds_tD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        assert self.cache.rows == 1
        num_new = len(embeds_tD)
        return self._run(0, embeds_tD[None], [num_new], Deadline(), np.arange(num_new))

    def _prefill_padded(self, rows: Sequence[FloatArray], deadline: Deadline) -> NDArray[np.float32]:
        parts = pad_prompts(rows, np.dtype(np.float32))
        return np.concatenate([self._run(first, embeds_BtD, counts, deadline) for first, embeds_BtD, counts in parts])

    def _prefill_row(self, row: int, embeds_tD: FloatArray, deadline: Deadline) -> NDArray[np.float32]:
        """One row, chunk by chunk; the others stay as they are. Returns (1,V)."""
        for start in range(0, len(embeds_tD), self.engine.chunk):
            part_tD = embeds_tD[start : start + self.engine.chunk]
            logits_1V = self._run(row, part_tD[None], [len(part_tD)], deadline)
        return logits_1V

    def _run(
        self,
        first: int,
        embeds_BtD: FloatArray,
        counts: list[int],
        deadline: Deadline,
        logits_index: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Appends tokens to the rows from ``first`` on and returns logits, one row of them for each chosen position.

        Args:
            first: row.
            embeds_BtD: the new tokens, with padding on the right.
            counts: how many are not padding, of each row.
            deadline: interrupts the run.
            logits_index: positions in [0,B*t); None: the last token of each row.
        """
        ends = np.arange(len(counts)) * embeds_BtD.shape[1] + np.array(counts) - 1
        cache, num_layers = self.cache, self.engine.text.num_layers
        cache.reserve(cache.capacity)  # the same in every layer, even if a growth was interrupted
        rows = slice(first, first + len(counts))
        past_B = np.array(cache.lengths[rows], np.int32)
        positions_Bt = (past_B[:, None] + np.arange(embeds_BtD.shape[1])).astype(np.int32)
        inputs: dict[str, NDArray[Any]] = {
            "inputs_embeds": np.ascontiguousarray(embeds_BtD, np.float32).reshape(1, -1, embeds_BtD.shape[2]),
            # Padding may lie beyond the context.
            "positions": np.minimum(positions_Bt, self.engine.text.max_context - 1),
            "mask": _mask(past_B, positions_Bt, cache.capacity, self.engine.window),
            "logits_index": ends if logits_index is None else logits_index,
        }
        for layer in range(num_layers):
            inputs[past_key(layer)], inputs[past_value(layer)] = cache.layer(layer, rows.start, rows.stop)
        found, *written = self.engine.run(inputs, deadline)
        logits_NV: NDArray[np.float32] = found.reshape(-1, self.engine.text.num_logits)
        cache.reserve(max(int(past) + count for past, count in zip(past_B, counts, strict=True)))
        for index, count in enumerate(counts):
            row, start = first + index, int(past_B[index])
            for layer in range(num_layers):
                for memory_1GSK, new_BGtK in zip(
                    cache.layer(layer, row, row + 1), written[2 * layer : 2 * layer + 2], strict=True
                ):
                    memory_1GSK[0, :, start : start + count] = new_BGtK[index, :, :count]
            cache.lengths[row] = start + count
        return logits_NV


def _mask(
    past_B: NDArray[np.int32], positions_Bt: NDArray[np.int32], capacity: int, window: int
) -> NDArray[np.float32]:
    """What is added to the scores, (B,1,t,S+t): 0 where a new token sees a cache slot or a new token, else -inf."""
    num_new = positions_Bt.shape[1]
    slots_S, news_t = np.arange(capacity), np.arange(num_new)
    sees_cache_BtS = np.broadcast_to(slots_S < past_B[:, None, None], (len(past_B), num_new, capacity))
    sees_new_Btt = np.broadcast_to(news_t <= news_t[:, None], (len(past_B), num_new, num_new))
    if window > 0:
        sees_cache_BtS = sees_cache_BtS & (slots_S > positions_Bt[..., None] - window)
        sees_new_Btt = sees_new_Btt & (news_t > news_t[:, None] - window)
    sees = np.concatenate([sees_cache_BtS, sees_new_Btt], axis=2)
    scores: NDArray[np.float32] = np.where(sees, np.float32(0), np.float32(-np.inf))[:, None]
    return scores


def open_core(graph: GraphFile, threads: int | None, device: str = "CPU", *, in_bf16: bool = False) -> Any:
    """A core for a device, as OpenVINO names it.

    A CPU computes in fp32; see ``computes_in_fp16`` for others. Inputs of weights in blocks are rounded to int8, with a
    scale for each row and block; an NPU does as its plugin does.

    Args:
        graph: what it is to run.
        threads: inside an operator of a CPU, None: one for each physical core; of no effect on another device.
        device: such as "GPU.1".
        in_bf16: a CPU computes in bf16 what it would in fp32, and rounds no inputs to int8 but those that the graph
            rounds itself.
    """
    precision = graph.precision
    hint = "bf16" if in_bf16 else "f16" if computes_in_fp16(device, precision) else "f32"
    # OpenVINO's own defaults are bf16 where the processor has it, and dynamic quantisation that was not asked for.
    config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    if not device.startswith("NPU"):
        groups = 0 if in_bf16 else precision.group_size or 0
        config |= {"NUM_STREAMS": 1, "DYNAMIC_QUANTIZATION_GROUP_SIZE": groups}
    if device == "CPU" and threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    with _BINDINGS:
        # The first of these calls in a process loads numpy into the bindings, which must not happen in two threads at
        # once: one would wait for the other without letting go of the interpreter, and both graphs never open.
        openvino.Type.f32.to_dtype()
    core = openvino.Core()
    core.set_property(device, config)
    return core


def _tensor(array: NDArray[Any]) -> Any:
    return openvino.Tensor(array, shared_memory=False)


def _infer(request: Any, deadline: Deadline) -> None:
    """Runs ``request`` to its end; what ``deadline`` raises cancels it and is raised once it has stopped."""
    request.start_async()
    try:
        # In slices, so that Ctrl-C is heard too.
        while not request.wait_for(_POLL_MS):
            deadline.check()
    except BaseException:
        request.cancel()
        with contextlib.suppress(RuntimeError):  # "Infer Request was canceled", or it had just ended
            request.wait()
        raise
