"""The opened decoder on TensorRT and its sessions.

Letters: B rows, t new tokens, n of their positions, S cache capacity, D width, V logits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.graph_io import past_key, present_key
from blip3v.config import TextConfig
from blip3v.errors import ArtifactError, RequestError
from blip3v.runtime import nvidia
from blip3v.runtime.backends import Execution, FloatArray, GraphFile, PromptRow, SplicedPrompt, still_open
from blip3v.runtime.backends.tensorrt.cuda import DeviceMemory, PinnedArray
from blip3v.runtime.backends.tensorrt.device_cache import DeviceCache
from blip3v.runtime.backends.tensorrt.engine import Context, OpenEngine
from blip3v.runtime.backends.tensorrt.step_graph import StepGraph
from blip3v.runtime.cached_session import CachedSession
from blip3v.runtime.cancellation import Deadline, held
from blip3v.runtime.gpu_array import GpuArray, GpuMemory
from blip3v.runtime.host_cache import cache_bytes, pad_prompts

__all__ = ["TensorRtDecoder", "TensorRtSession"]

_EMBEDS, _INDEX, _WRITE, _LOGITS = "inputs_embeds", "logits_index", "write_indices", "logits"
_LONGER = "build engines with a larger `max_seq_len`"
_MORE_ROWS = "ask fewer questions at once, or build engines with a larger `max_batch_size`"
_ALIGNMENT_BYTES = 256  # of every address that TensorRT is given


class TensorRtDecoder:
    """See ``Decoder``. Runs of several sessions queue up: they share the contexts and one stream."""

    def __init__(
        self, graph: GraphFile, execution: Execution, text: TextConfig, chunk: int, *, cuda_graphs: bool
    ) -> None:
        engine = OpenEngine(graph, "decoder")
        self.execution = engine.execution(execution)
        self.dtype = np.dtype(graph.precision.io)
        self.gpu_dtype: np.dtype[Any] | None = self.dtype
        opened = _OpenDecoder(engine, text, chunk, cuda_graphs=cuda_graphs)
        self.max_rows: int | None = opened.max_rows
        self.max_verified = opened.max_verified
        self.memory = nvidia.gpu_memory()
        self.token_bytes = cache_bytes(text, opened.cache_dtype, 1, 1) * (1 if opened.is_aliased else 2)
        self.row_tokens = opened.capacity
        self._opened: _OpenDecoder | None = opened

    def session(self, num_rows: int, num_tokens: int) -> TensorRtSession:
        """See ``Decoder``. Its cache takes the engine's whole capacity, however few tokens are asked for.

        Raises:
            RequestError: more rows or tokens than the engine was built for.
        """
        return TensorRtSession(still_open(self._opened, "decoder"), num_rows, num_tokens)

    def close(self) -> None:
        """See ``Decoder``. Keeps the kernels that were compiled, once no session is running."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.keep_kernels()


class _Placed(NamedTuple):
    """Video tokens on the GPU that are part of a run."""

    row: int  # of the run
    position: int  # of the first among the new tokens of its row
    video: GpuArray  # (M,D)
    part: slice  # of its tokens


class _OpenDecoder:
    """The engine, which every session holds: a context for each profile and buffers for the largest run."""

    def __init__(self, engine: OpenEngine, text: TextConfig, chunk: int, *, cuda_graphs: bool) -> None:
        self.lock = threading.Lock()  # held for whatever goes into the stream, which may be capturing
        self.text = text
        self._engine = engine
        past = next(tensor for tensor in engine.inputs if tensor.name == past_key(0))
        self.cache_dtype = np.dtype(past.dtype)
        self.capacity = self._fixed_capacity(past.axes[2])
        self.is_aliased = engine.is_aliased(present_key(0))
        prefill, step = self._profiles()
        self._prefill = engine.context(prefill)
        self._step = self._prefill if step == prefill else engine.context(step, cuda_graphs=cuda_graphs)
        self._graph = StepGraph(engine.stream, captures=cuda_graphs and not engine.trt.tensorrt.is_rtx)
        self.chunk = min(chunk, self._prefill.largest(_EMBEDS)[1])
        self.max_rows = self._step.largest(_EMBEDS)[0]
        self.max_prefill_rows = self._prefill.largest(_EMBEDS)[0]
        largest = self._prefill.largest(_INDEX)
        self._takes_one_position = len(largest) == 1
        self.max_verified = 1 if self._takes_one_position else min(self.chunk, largest[1])
        self._buffers = _Buffers(
            engine, max(self.max_rows, self.max_prefill_rows), self.chunk, text, num_verified=self.max_verified
        )

    def keep_kernels(self) -> None:
        """See ``OpenEngine``."""
        with self.lock:
            self._engine.keep_kernels()

    def new_cache(self, num_rows: int) -> DeviceCache:
        """An empty cache, which the stream may still be filling with zeros."""
        engine = self._engine
        with self.lock:
            return DeviceCache(
                engine.cuda,
                engine.stream,
                self.text,
                self.cache_dtype,
                rows=num_rows,
                capacity=self.capacity,
                is_aliased=self.is_aliased,
            )

    def run(
        self,
        cache: DeviceCache,
        first: int,
        embeds_BtD: FloatArray,
        logits_index: Sequence[Sequence[int]],
        deadline: Deadline | None = None,
        placed: Sequence[_Placed] = (),
    ) -> NDArray[np.float32]:
        """Runs the engine on the rows from ``first`` on and returns logits (B,n,V); lengths stay as they are.

        Args:
            cache: of the session.
            first: the first row.
            embeds_BtD: new tokens; what follows a row's last one is padding.
            logits_index: of each row, the n positions whose logits are returned.
            deadline: ends the wait for other sessions; None: does not.
            placed: what takes the place of some of ``embeds_BtD``.
        """
        num_rows, num_new, _ = embeds_BtD.shape
        last, index_Bn = first + num_rows, np.array(logits_index, np.int64)
        with held(self.lock, deadline or Deadline()), self._engine.trt.calling("running the decoder"):
            # Inside the lock: the producers put their events into the stream. Held until the run is through.
            videos = [(each, each.video.memory(self._engine.stream.handle)[each.part]) for each in placed]
            self._buffers.fill(embeds_BtD, index_Bn, cache.lengths[first:last])
            context = self._step if num_new == 1 else self._prefill

            def bind() -> None:
                self._bind(context, cache, first, num_new, index_Bn.shape)

            def enqueue() -> None:
                self._buffers.to_device(num_rows, num_new, index_Bn.size)
                for each, memory in videos:
                    self._buffers.place(memory, each.row * num_new + each.position)
                context.enqueue()
                self._buffers.to_host(index_Bn.size)

            if num_new == 1 and not placed:  # a captured step would repeat the copy
                self._graph.run((cache.id, cache.turn, first, num_rows), bind, enqueue)
            else:
                if context is self._step:
                    self._graph.forget()
                bind()
                enqueue()
            self._engine.stream.synchronize()
            cache.written(first, last)
            return self._buffers.logits(index_Bn.shape)

    def _bind(
        self, context: Context, cache: DeviceCache, first: int, num_new: int, index_shape: tuple[int, ...]
    ) -> None:
        text, num_rows = self.text, index_shape[0]
        context.set_shape(_EMBEDS, (num_rows, num_new, text.hidden_size))
        context.set_shape(_INDEX, (num_rows,) if self._takes_one_position else index_shape)
        context.set_shape(_WRITE, (num_rows,))
        pasts = {tensor.name for tensor in self._engine.inputs} - {_EMBEDS, _INDEX, _WRITE}
        for name, address in cache.addresses(first).items():
            if name in pasts:
                context.set_shape(name, (num_rows, text.num_kv_heads, self.capacity, text.head_dim))
            context.set_address(name, address)
        for name, address in self._buffers.addresses().items():
            context.set_address(name, address)

    def _profiles(self) -> tuple[int, int]:
        """The profile for chunks of a prompt and the one for steps, which is the same if there is one only."""
        engine = self._engine
        longest = {i: engine.smallest_and_largest(_EMBEDS, i)[1][1] for i in range(engine.num_profiles)}
        return max(longest, key=lambda i: longest[i]), min(longest, key=lambda i: longest[i])

    def _fixed_capacity(self, axis: object) -> int:
        text, path = self.text, self._engine.path
        if not isinstance(axis, int):
            raise ArtifactError(f"{path}: the capacity of its cache is free; a fixed one is expected; build it again")
        row_bytes = text.num_kv_heads * axis * text.head_dim * self.cache_dtype.itemsize
        if row_bytes % _ALIGNMENT_BYTES:
            raise ArtifactError(
                f"{path}: a row of its cache has {row_bytes} bytes, and TensorRT takes rows at multiples of "
                f"{_ALIGNMENT_BYTES}",
                remedy="build engines whose `max_seq_len` is a multiple of 64",
            )
        return axis


class _Buffers:
    """Inputs and logits of one run, on the host and on the device, allocated once for the largest run."""

    def __init__(self, engine: OpenEngine, max_rows: int, max_new: int, text: TextConfig, *, num_verified: int) -> None:
        self._stream = engine.stream
        cuda, self._text = engine.cuda, text
        dtypes = {tensor.name: np.dtype(tensor.dtype) for tensor in [*engine.inputs, *engine.outputs]}
        shapes = {
            _EMBEDS: (max_rows, max_new, text.hidden_size),
            _INDEX: (max(max_rows, num_verified),),
            _WRITE: (max_rows,),
            _LOGITS: (max(max_rows, num_verified), text.num_logits),
        }
        self._itemsize = {name: dtypes[name].itemsize for name in shapes}
        self._host = {name: PinnedArray(cuda, shape, dtypes[name]) for name, shape in shapes.items()}
        self._device = {
            name: DeviceMemory(cuda, math.prod(shape) * self._itemsize[name], "inputs and outputs of the decoder")
            for name, shape in shapes.items()
        }

    def fill(self, embeds_BtD: FloatArray, index_Bn: NDArray[np.int64], lengths: Sequence[int]) -> None:
        """Writes the inputs into pinned memory."""
        self._host[_EMBEDS].view(embeds_BtD.shape)[...] = embeds_BtD
        self._host[_INDEX].view(index_Bn.shape)[...] = index_Bn
        self._host[_WRITE].view((len(lengths),))[...] = lengths

    def to_device(self, num_rows: int, num_new: int, num_positions: int) -> None:
        """Enqueues the copies of the inputs."""
        counts = {_EMBEDS: num_rows * num_new * self._text.hidden_size, _INDEX: num_positions, _WRITE: num_rows}
        for name, count in counts.items():
            num_bytes = count * self._itemsize[name]
            self._stream.to_device(self._device[name].address, self._host[name].address, num_bytes)

    def place(self, video: GpuMemory, position: int) -> None:
        """Enqueues the copy of video tokens over the embeddings, from the token at ``position`` of all rows on."""
        target = self._device[_EMBEDS].address + position * video.row_bytes
        self._stream.copy(target, video.address, len(video) * video.row_bytes)

    def to_host(self, num_positions: int) -> None:
        """Enqueues the copy of the logits."""
        num_bytes = num_positions * self._text.num_logits * self._itemsize[_LOGITS]
        self._stream.to_host(self._host[_LOGITS].address, self._device[_LOGITS].address, num_bytes)

    def logits(self, index_shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The logits (B,n,V), once the stream is through."""
        found: NDArray[np.float32] = self._host[_LOGITS].view((*index_shape, self._text.num_logits)).copy()
        return found

    def addresses(self) -> dict[str, int]:
        """Where the inputs and the logits are on the device, by name."""
        return {name: memory.address for name, memory in self._device.items()}


class TensorRtSession(CachedSession[_OpenDecoder, DeviceCache]):
    """See ``DecoderSession``. A run that failed leaves the lengths as they were before it.

    Short prompts go in together, padded on the right, with tokens before them or without; long ones row by row and in
    chunks. A chunk that runs goes on to its end: the deadline is looked at before each.
    """

    def __init__(self, decoder: _OpenDecoder, num_rows: int, num_tokens: int) -> None:
        if num_rows > decoder.max_rows:
            raise RequestError(
                f"{num_rows} rows at once; the engine was built for at most {decoder.max_rows}", remedy=_MORE_ROWS
            )
        _check_tokens(num_tokens, decoder.capacity)
        super().__init__(decoder, decoder.new_cache(num_rows))

    def reserve(self, num_tokens: int) -> None:
        """See ``DecoderSession``. The room is there from the beginning.

        Raises:
            RequestError: it is more than the engine's capacity.
        """
        _check_tokens(num_tokens, self.cache.capacity)

    def prefill(self, rows: Sequence[PromptRow], deadline: Deadline) -> NDArray[np.float32]:
        """See ``DecoderSession``. Several rows may hold earlier tokens.

        Video tokens on the GPU are copied there to their place between the embeddings of the text.
        """
        cache, decoder = self.cache, self.engine
        assert len(rows) == cache.rows
        assert all(len(row) for row in rows)
        longest = max(map(len, rows))
        self.reserve(max(length + len(row) for length, row in zip(cache.lengths, rows, strict=True)))
        # Padding is written behind the tokens of its row and has to find room there.
        has_room = max(cache.lengths) + longest <= min(cache.capacity, decoder.text.max_context)
        if 1 < len(rows) <= decoder.max_prefill_rows and longest <= decoder.chunk and has_room:
            return self._prefill_padded(rows, deadline)
        return np.concatenate([self._prefill_row(i, row, deadline) for i, row in enumerate(rows)])

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache = self.cache
        self.reserve(max(cache.lengths) + 1)
        logits_B1V = self.engine.run(cache, 0, embeds_BD[:, None], [[0]] * cache.rows)
        cache.lengths = [length + 1 for length in cache.lengths]
        return logits_B1V[:, 0]

    def verify(self, embeds_tD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache, num_new = self.cache, len(embeds_tD)
        assert cache.rows == 1
        self.reserve(cache.lengths[0] + num_new)
        logits_1tV = self.engine.run(cache, 0, embeds_tD[None], [range(num_new)])
        cache.lengths = [cache.lengths[0] + num_new]
        logits_tV: NDArray[np.float32] = logits_1tV[0]
        return logits_tV

    def drop_row(self, row: int) -> None:
        """See ``DecoderSession``."""
        cache = self.cache
        with self.engine.lock:
            cache.drop_row(row)

    def _prefill_padded(self, rows: Sequence[PromptRow], deadline: Deadline) -> NDArray[np.float32]:
        logits_BV, decoder, cache = [], self.engine, self.cache
        for first, embeds_BtD, counts in pad_prompts([_with_zeros(row) for row in rows], np.dtype(np.float32)):
            deadline.check()
            placed = _placed(rows[first : first + len(counts)], 0, max(counts))
            index = [[count - 1] for count in counts]
            logits_BV.append(decoder.run(cache, first, embeds_BtD, index, deadline, placed)[:, 0])
            for row, count in enumerate(counts, first):
                cache.lengths[row] += count
        deadline.check()
        return np.concatenate(logits_BV)

    def _prefill_row(self, row: int, prompt: PromptRow, deadline: Deadline) -> NDArray[np.float32]:
        """One row, chunk by chunk; the others stay as they are. Returns (1,V)."""
        decoder, cache = self.engine, self.cache
        embeds_tD = _with_zeros(prompt)
        for start in range(0, len(embeds_tD), decoder.chunk):
            deadline.check()
            part_tD = embeds_tD[start : start + decoder.chunk]
            placed = _placed([prompt], start, start + len(part_tD))
            logits_11V = decoder.run(cache, row, part_tD[None], [[len(part_tD) - 1]], deadline, placed)
            cache.lengths[row] += len(part_tD)
        deadline.check()
        return logits_11V[:, 0]


def _with_zeros(prompt: PromptRow) -> FloatArray:
    """A prompt as the host has it: zeros where its video tokens go."""
    if not isinstance(prompt, SplicedPrompt):
        return prompt
    zeros_MD = np.zeros_like(prompt.text_TD, shape=prompt.video.shape)
    before_TD, after_TD = np.split(prompt.text_TD, [prompt.position])
    embeds_tD: FloatArray = np.concatenate([before_TD, zeros_MD, after_TD])
    return embeds_tD


def _placed(rows: Sequence[PromptRow], start: int, stop: int) -> list[_Placed]:
    """The video tokens on the GPU among the tokens from ``start`` to ``stop`` (exclusive) of each row."""
    placed = []
    for row, prompt in enumerate(rows):
        if isinstance(prompt, SplicedPrompt):
            first = max(start, prompt.position)
            last = min(stop, prompt.position + len(prompt.video))
            if first < last:
                part = slice(first - prompt.position, last - prompt.position)
                placed.append(_Placed(row, first - start, prompt.video, part))
    return placed


def _check_tokens(num_tokens: int, capacity: int) -> None:
    if num_tokens > capacity:
        raise RequestError(
            f"prompt, video tokens and answer together take {num_tokens} tokens; the engine holds at most {capacity}",
            remedy=f"ask for fewer new tokens with `max_new_tokens`, or {_LONGER}",
        )
