"""The opened graphs on OpenVINO, and decoder sessions whose KV cache is OpenVINO's own state.

Not here: how the decoder graph is rewritten for that (``graph.py``). Letters: B rows, t new tokens, S slots, D width,
V logits, F frames, M video tokens.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from blip3v.errors import BackendError, OutOfMemoryError
from blip3v.runtime import memory
from blip3v.runtime.backends import Execution, FloatArray, GraphFile
from blip3v.runtime.backends.openvino.graph import read_model, read_stateful_decoder
from blip3v.runtime.cancellation import Deadline

__all__ = ["OpenVinoDecoder", "OpenVinoSession", "OpenVinoVideoEncoder"]

# How long a run goes on after its deadline, besides the operator that is being computed.
_POLL_MS = 20
# Slots that no token sees are cut out when there are this many, and more than those that are seen.
_MAX_DEAD_SLOTS = 256
_DEAD = -1
_MEMORY_WORDS = ("bad_alloc", "failed to allocate", "out of memory", "cannot allocate memory", "std::length_error")

# fp32 arithmetic, and no quantisation that was not asked for: OpenVINO's own defaults are bf16 where the processor has
# it, an 8-bit cache and dynamic quantisation.
_CPU_CONFIG: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": 1,
    "INFERENCE_PRECISION_HINT": "f32",
    "KV_CACHE_PRECISION": "f32",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
}


class OpenVinoVideoEncoder:
    """See ``VideoEncoder``."""

    def __init__(self, graph: GraphFile, execution: Execution, threads: int | None) -> None:
        self.execution = execution
        self._dtype = np.dtype(graph.precision.io)
        with engine_errors(f"opening {graph.path}"):
            core = open_core(threads)
            model = read_model(core, graph)
            self._outputs = [output.any_name for output in model.outputs]
            self._compiled: Any = core.compile_model(model, "CPU")
        self._spare: list[Any] = []  # requests that nobody runs: each holds the memory of its activations
        self._lock = threading.Lock()

    def run(self, frames_BF3SS: NDArray[np.float32], deadline: Deadline) -> dict[str, FloatArray]:
        """See ``VideoEncoder``."""
        with engine_errors("running the video encoder"), self._request() as request:
            request.set_tensor("frames", _tensor(np.ascontiguousarray(frames_BF3SS, self._dtype)))
            deadline.check()
            _infer(request, deadline)
            return {name: request.get_tensor(name).data.copy() for name in self._outputs}

    def close(self) -> None:
        """See ``VideoEncoder``."""
        self._spare, self._compiled = [], None

    @contextlib.contextmanager
    def _request(self) -> Iterator[Any]:
        with self._lock:
            request = self._spare.pop() if self._spare else self._compiled.create_infer_request()
        yield request
        with self._lock:
            self._spare.append(request)


class OpenVinoDecoder:
    """See ``Decoder``. Runs of several sessions queue up for the same cores."""

    def __init__(
        self, graph: GraphFile, execution: Execution, threads: int | None, chunk: int, token_bytes: int
    ) -> None:
        self.execution = execution
        self.dtype = np.dtype(graph.precision.io)
        self.chunk = chunk
        self._token_bytes = token_bytes
        with engine_errors(f"opening {graph.path}"):
            core = open_core(threads)
            stateful = read_stateful_decoder(core, graph)
            self.window = stateful.window
            self.compiled: Any = core.compile_model(stateful.model, "CPU")

    def session(self, num_rows: int, num_tokens: int) -> OpenVinoSession:
        """See ``Decoder``."""
        session = OpenVinoSession(self, num_rows)
        session.reserve(num_tokens)
        return session

    def close(self) -> None:
        """See ``Decoder``."""
        self.compiled = None

    def require_memory(self, num_tokens: int, what: str) -> None:
        """Raises unless keys and values of ``num_tokens`` more fit into memory."""
        memory.require(
            num_tokens * self._token_bytes, what, "ask fewer questions at once, a shorter one, or for fewer new tokens"
        )


class OpenVinoSession:
    """See ``DecoderSession``. A run that was interrupted or failed leaves the session as it was before.

    All rows are packed into one sequence of slots: every slot knows its row and its position, and the mask lets a token
    see the slots of its own row that are not after it. So rows of different lengths need no padding, and dropping a row
    or truncating it only changes the mask.
    """

    def __init__(self, decoder: OpenVinoDecoder, num_rows: int) -> None:
        assert num_rows > 0
        self._decoder = decoder
        self._request = decoder.compiled.create_infer_request()
        self._request.set_tensor("beam_idx", _tensor(np.zeros(1, np.int32)))
        self._lengths = [0] * num_rows
        self._ids = list(range(num_rows))  # of the rows, as the slots know them: rows move, slots do not
        self._slot_ids_S = np.empty(0, np.int32)  # _DEAD: no token sees this slot
        self._slot_positions_S = np.empty(0, np.int32)
        self._torn = False  # a run ended early: layers may hold slots that we do not know

    @property
    def lengths(self) -> tuple[int, ...]:
        """See ``DecoderSession``."""
        return tuple(self._lengths)

    def reserve(self, num_tokens: int) -> None:
        """OpenVINO grows its state by itself; this only asks whether the memory is there."""
        missing = len(self._lengths) * num_tokens - len(self._slot_ids_S)
        self._decoder.require_memory(max(0, missing), f"a cache of {len(self._lengths)} x {num_tokens} tokens")

    def prefill(self, rows: Sequence[FloatArray], deadline: Deadline) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        assert len(rows) == len(self._lengths)
        assert all(len(row) for row in rows)
        before = len(self._slot_ids_S)
        counts = [len(row) for row in rows]
        embeds_tD = np.concatenate(list(rows))
        ids_t = np.repeat(np.array(self._ids, np.int32), counts)
        positions_t = np.concatenate(
            [np.arange(length, length + count) for length, count in zip(self._lengths, counts, strict=True)]
        ).astype(np.int32)
        last_B = np.cumsum(counts) - 1
        logits: list[NDArray[np.float32]] = []
        try:
            for start in range(0, len(embeds_tD), self._decoder.chunk):
                part = slice(start, start + self._decoder.chunk)
                ends = last_B[(last_B >= start) & (last_B < start + self._decoder.chunk)] - start
                logits.append(self._run(embeds_tD[part], ids_t[part], positions_t[part], ends, deadline))
        except BaseException:
            self._slot_ids_S[before:] = _DEAD
            raise
        self._lengths = [length + count for length, count in zip(self._lengths, counts, strict=True)]
        return np.concatenate(logits)

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        ids_B, positions_B = np.array(self._ids, np.int32), np.array(self._lengths, np.int32)
        logits_BV = self._run(embeds_BD, ids_B, positions_B, np.arange(len(self._ids)), Deadline())
        self._lengths = [length + 1 for length in self._lengths]
        return logits_BV

    def truncate(self, num_tokens: int) -> None:
        """See ``DecoderSession``."""
        assert len(self._lengths) == 1
        self._forget(0, num_tokens)

    def drop_row(self, row: int) -> None:
        """See ``DecoderSession``."""
        self._forget(row, 0)
        last_id, last_length = self._ids.pop(), self._lengths.pop()
        if row < len(self._ids):
            self._ids[row], self._lengths[row] = last_id, last_length

    def close(self) -> None:
        """See ``DecoderSession``."""
        self._request = None

    def _forget(self, row: int, num_tokens: int) -> None:
        """Forgets the tokens of a row after the first ``num_tokens``."""
        assert 0 <= num_tokens <= self._lengths[row]
        self._slot_ids_S[(self._slot_ids_S == self._ids[row]) & (self._slot_positions_S >= num_tokens)] = _DEAD
        self._lengths[row] = num_tokens

    def _run(
        self,
        embeds_tD: FloatArray,
        ids_t: NDArray[np.int32],
        positions_t: NDArray[np.int32],
        ends_B: NDArray[Any],
        deadline: Deadline,
    ) -> NDArray[np.float32]:
        """Appends tokens of any rows and returns the logits after those at ``ends_B``, which may be none."""
        deadline.check()
        self._compact()
        slot_ids_S = np.concatenate([self._slot_ids_S, ids_t])
        slot_positions_S = np.concatenate([self._slot_positions_S, positions_t])
        inputs = {
            "inputs_embeds": np.ascontiguousarray(embeds_tD[None], self._decoder.dtype),
            "positions": positions_t[None],
            "mask": self._mask(ids_t, positions_t, slot_ids_S, slot_positions_S)[None, None],
            # The graph needs one position even where no row ends.
            "logits_index": ends_B.astype(np.int64) if len(ends_B) else np.zeros(1, np.int64),
        }
        with engine_errors("running the decoder"):
            for name, array in inputs.items():
                self._request.set_tensor(name, _tensor(array))
            self._torn = True
            _infer(self._request, deadline)
            self._torn = False
            logits_BV: NDArray[np.float32] = self._request.get_tensor("logits").data[: len(ends_B)].copy()
        self._slot_ids_S, self._slot_positions_S = slot_ids_S, slot_positions_S
        return logits_BV

    def _mask(
        self,
        ids_t: NDArray[np.int32],
        positions_t: NDArray[np.int32],
        slot_ids_S: NDArray[np.int32],
        slot_positions_S: NDArray[np.int32],
    ) -> NDArray[np.bool_]:
        """Which slots each new token sees, (t,S)."""
        sees_tS = (slot_ids_S == ids_t[:, None]) & (slot_positions_S <= positions_t[:, None])
        if self._decoder.window > 0:
            sees_tS &= slot_positions_S > positions_t[:, None] - self._decoder.window
        return np.ascontiguousarray(sees_tS)

    def _compact(self) -> None:
        """Cuts the state down to the slots that are seen, where it holds too many others or is torn."""
        live_S = np.flatnonzero(self._slot_ids_S != _DEAD)
        num_dead = len(self._slot_ids_S) - len(live_S)
        if not (self._torn or (num_dead >= _MAX_DEAD_SLOTS and num_dead > len(live_S))):
            return
        with engine_errors("compacting the cache"):
            if not len(live_S):
                self._request.reset_state()
            else:
                self._torn = True
                for state in self._request.query_state():
                    state.state = _tensor(np.ascontiguousarray(state.state.data[:, :, live_S]))
        self._torn = False
        self._slot_ids_S, self._slot_positions_S = self._slot_ids_S[live_S], self._slot_positions_S[live_S]


def open_core(threads: int | None) -> Any:
    """A core for the CPU that computes in fp32; ``threads`` inside an operator, None: one for each physical core."""
    core = openvino.Core()
    core.set_property("CPU", _CPU_CONFIG if threads is None else _CPU_CONFIG | {"INFERENCE_NUM_THREADS": threads})
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


@contextlib.contextmanager
def engine_errors(doing: str) -> Iterator[None]:
    """Turns what OpenVINO raises inside the block into our errors; ``doing`` begins the message.

    Raises:
        OutOfMemoryError: memory ran out.
        BackendError: anything else from OpenVINO.
    """
    try:
        yield
    except MemoryError as error:
        raise OutOfMemoryError(f"{doing}: not enough memory; use a smaller precision or a shorter prompt") from error
    except RuntimeError as error:  # all that OpenVINO raises
        text = " ".join(str(error).split())[:500]
        if any(word in text.lower() for word in _MEMORY_WORDS):
            raise OutOfMemoryError(f"{doing}: OpenVINO ran out of memory: {text}") from error
        raise BackendError(f"{doing}: OpenVINO failed: {text}") from error
