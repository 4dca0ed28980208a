"""Video encoder, decoder and decoder sessions over a graph that ONNX Runtime has opened, on any of its providers.

A session's cache lies where its back end puts it (``BoundCache``); all else that goes in and out is host memory. So the
logits of the chosen positions come back to the host with every run: sampling, penalties and log-probabilities are
computed there.

Letters: B rows, t new tokens, n of their positions, D width, V logits, F frames, M video tokens, S side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from blip3v.config import TextConfig
from blip3v.runtime.backends import Execution, FloatArray, PromptRow, SplicedPrompt, host_prompts, still_open
from blip3v.runtime.cached_session import CachedSession, RowCache
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.gpu_array import GpuArray, GpuMemory
from blip3v.runtime.host_cache import cache_bytes, pad_prompts
from blip3v.runtime.memory import HOST, Memory
from blip3v.runtime.onnxruntime_graph import OpenGraph

__all__ = ["BoundCache", "OnnxRuntimeDecoder", "OnnxRuntimeSession", "OnnxRuntimeVideoEncoder"]


class BoundCache(RowCache, Protocol):
    """Keys and values of the rows of a session, which the graph reads and writes in place."""

    def reserve(self, tokens: int) -> None:
        """Makes room for ``tokens`` in each row.

        Raises:
            OutOfMemoryError: it does not fit into memory.
        """
        ...

    def bind(self, binding: Any, first: int, last: int) -> None:
        """Binds rows ``first`` to ``last`` (exclusive) as past and as present.

        The same memory as both: this is what makes the attention write in place.
        """
        ...

    def layer(self, layer: int, first: int, last: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Keys and values (B,H,S,K) of rows ``first`` to ``last`` (exclusive), as the host sees them."""
        ...


class OnnxRuntimeVideoEncoder:
    """See ``VideoEncoder``.

    Args:
        graph: the opened video encoder.
        execution: what it is computed with.
        gpu: the device that arrays on the GPU are bound on, as ONNX Runtime names it; None: none are taken.
    """

    def __init__(self, graph: OpenGraph, execution: Execution, gpu: str | None = None) -> None:
        self._graph: OpenGraph | None = graph
        self._gpu = gpu
        self.execution = execution
        self.gpu_dtype: np.dtype[Any] | None = None if gpu is None else graph.dtype

    def run(self, frames_BF3SS: NDArray[np.float32] | GpuArray, deadline: Deadline) -> dict[str, FloatArray]:
        """See ``VideoEncoder``."""
        graph = still_open(self._graph, "video encoder")
        if isinstance(frames_BF3SS, GpuArray):
            return self._run_on_gpu(graph, frames_BF3SS.memory(), deadline)
        frames = np.ascontiguousarray(frames_BF3SS, graph.dtype)
        with graph.running("running the video encoder", deadline) as options:
            return dict(zip(graph.outputs, graph.session.run(None, {"frames": frames}, options), strict=True))

    def _run_on_gpu(self, graph: OpenGraph, frames: GpuMemory, deadline: Deadline) -> dict[str, FloatArray]:
        with graph.running("running the video encoder", deadline) as options:
            binding = graph.onnxruntime.IOBinding(graph.session)
            graph.bind_gpu_input(binding, "frames", self._gpu, frames)
            for name in graph.outputs:
                binding.bind_output(name)
            binding.synchronize_inputs()
            graph.session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
            return dict(zip(graph.outputs, binding.copy_outputs_to_cpu(), strict=True))

    def close(self) -> None:
        """See ``VideoEncoder``."""
        self._graph = None


class OnnxRuntimeDecoder:
    """See ``Decoder``.

    Args:
        graph: the opened decoder.
        execution: what it is computed with.
        text: its geometry.
        chunk: tokens of a prompt that go through the graph at once, at most.
        new_cache: returns an empty cache for the graph, the geometry and a number of rows.
        memory: where it lies.
        gpu: the device that arrays on the GPU are bound on, as ONNX Runtime names it; None: none are taken.
    """

    max_rows: int | None = None
    row_tokens = 0

    def __init__(
        self,
        graph: OpenGraph,
        execution: Execution,
        text: TextConfig,
        chunk: int,
        new_cache: Callable[[OpenGraph, TextConfig, int], BoundCache],
        *,
        memory: Memory = HOST,
        gpu: str | None = None,
    ) -> None:
        self.execution = execution
        self.dtype = graph.dtype
        self.gpu_dtype: np.dtype[Any] | None = None if gpu is None else graph.dtype
        self._gpu = gpu
        self.memory = memory
        self.token_bytes = cache_bytes(text, graph.cache_dtype, 1, 1)
        self._graph: OpenGraph | None = graph
        self._text = text
        self.max_verified = 1 if graph.takes_one_position else chunk
        self._chunk = chunk
        self._new_cache = new_cache

    def session(self, num_rows: int, num_tokens: int) -> OnnxRuntimeSession:
        """See ``Decoder``."""
        graph = still_open(self._graph, "decoder")
        cache = self._new_cache(graph, self._text, num_rows)
        cache.reserve(num_tokens)
        return OnnxRuntimeSession(graph, self._text, self._chunk, cache, self._gpu)

    def close(self) -> None:
        """See ``Decoder``."""
        self._graph = None


class OnnxRuntimeSession(CachedSession[OpenGraph, BoundCache]):
    """See ``DecoderSession``.

    GroupQueryAttention takes more than one new token after earlier ones for a single row only. So long prompts
    go in row by row and in chunks; short ones with nothing before them together, padded on the right. Video tokens on
    the GPU are chunks of their own, which the graph reads where they are.
    """

    def __init__(
        self, graph: OpenGraph, text: TextConfig, chunk: int, cache: BoundCache, gpu: str | None = None
    ) -> None:
        super().__init__(graph, cache)
        self._text = text
        self._chunk = chunk
        self._gpu = gpu

    def reserve(self, num_tokens: int) -> None:
        """See ``DecoderSession``."""
        self.cache.reserve(num_tokens)

    def prefill(self, rows: Sequence[PromptRow], deadline: Deadline) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache = self.cache
        assert len(rows) == cache.rows
        assert all(len(row) for row in rows)
        cache.reserve(max(length + len(row) for length, row in zip(cache.lengths, rows, strict=True)))
        is_spliced = any(isinstance(row, SplicedPrompt) for row in rows)
        if len(rows) > 1 and max(map(len, rows)) <= self._chunk and not is_spliced:
            return self._prefill_padded(host_prompts(rows), deadline)
        return np.concatenate([self._prefill_row(i, row, deadline) for i, row in enumerate(rows)])

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache = self.cache
        cache.reserve(max(cache.lengths) + 1)
        lengths = [length + 1 for length in cache.lengths]
        logits_B1V = self._run(0, cache.rows, embeds_BD[:, None], [[0]] * cache.rows, lengths)
        cache.lengths = lengths
        return logits_B1V[:, 0]

    def verify(self, embeds_tD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        cache, num_new = self.cache, len(embeds_tD)
        assert cache.rows == 1
        lengths = [cache.lengths[0] + num_new]
        cache.reserve(lengths[0])
        logits_1tV = self._run(0, 1, embeds_tD[None], [range(num_new)], lengths)
        cache.lengths = lengths
        logits_tV: NDArray[np.float32] = logits_1tV[0]
        return logits_tV

    def _prefill_padded(self, rows: Sequence[FloatArray], deadline: Deadline) -> NDArray[np.float32]:
        assert not any(self.cache.lengths)
        logits_BV = []
        for first, embeds_BtD, lengths in pad_prompts(rows, self.engine.dtype):
            last = first + len(lengths)
            ends = [[length - 1] for length in lengths]
            logits_BV.append(self._run(first, last, embeds_BtD, ends, lengths, deadline)[:, 0])
            self.cache.lengths[first:last] = lengths
        return np.concatenate(logits_BV)

    def _prefill_row(self, row: int, prompt: PromptRow, deadline: Deadline) -> NDArray[np.float32]:
        """One row, chunk by chunk; the others stay as they are. Returns (1,V)."""
        cache = self.cache
        for part_tD in _chunks(prompt, self._chunk):
            length = cache.lengths[row] + len(part_tD)
            part_1tD = part_tD.as_batch() if isinstance(part_tD, GpuMemory) else part_tD[None]
            logits_11V = self._run(row, row + 1, part_1tD, [[len(part_tD) - 1]], [length], deadline)
            cache.lengths[row] = length
        return logits_11V[:, 0]

    def _run(
        self,
        first: int,
        last: int,
        embeds_BtD: FloatArray | GpuMemory,
        logits_index: Sequence[Sequence[int]],
        lengths: list[int],
        deadline: Deadline | None = None,
    ) -> NDArray[np.float32]:
        """Runs the graph on rows ``first`` to ``last`` (exclusive) and returns logits (B,n,V).

        Args:
            first: row.
            last: row, exclusive.
            embeds_BtD: new tokens.
            logits_index: of each row, n positions among them.
            lengths: of each row, the new tokens included.
            deadline: interrupts the run.
        """
        graph = self.engine
        index_Bn = np.array(logits_index, np.int64)
        logits_BnV = np.empty((*index_Bn.shape, self._text.num_logits), np.float32)
        bound = logits_BnV
        if graph.takes_one_position:
            index_Bn, bound = index_Bn[:, 0], logits_BnV[:, 0]
        inputs: dict[str, NDArray[Any]] = {"logits_index": index_Bn}
        if not isinstance(embeds_BtD, GpuMemory):
            inputs["inputs_embeds"] = np.ascontiguousarray(embeds_BtD, graph.dtype)
        if graph.takes_write_indices:
            inputs["write_indices"] = np.array(self.cache.lengths[first:last], np.int64)
        else:
            inputs["seqlens_k"] = np.array(lengths, np.int32) - np.int32(1)
            inputs["total_sequence_length"] = np.array(max(lengths), np.int32)
        with graph.running("running the decoder", deadline) as options:
            binding = graph.onnxruntime.IOBinding(graph.session)
            for name, array in inputs.items():
                binding.bind_ortvalue_input(name, graph.value(array))
            if isinstance(embeds_BtD, GpuMemory):
                graph.bind_gpu_input(binding, "inputs_embeds", self._gpu, embeds_BtD)
            binding.bind_ortvalue_output("logits", graph.value(bound))
            self.cache.bind(binding, first, last)
            binding.synchronize_inputs()
            graph.session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
        return logits_BnV


def _chunks(prompt: PromptRow, size: int) -> Iterator[FloatArray | GpuMemory]:
    """The embeddings (t,D) of a prompt in order, at most ``size`` tokens at a time."""
    parts: list[FloatArray | GpuMemory]
    if isinstance(prompt, SplicedPrompt):
        before_TD, after_TD = prompt.text_TD[: prompt.position], prompt.text_TD[prompt.position :]
        parts = [before_TD, prompt.video.memory(), after_TD]
    else:
        parts = [prompt]
    for part in parts:
        for start in range(0, len(part), size):
            yield part[start : start + size]
