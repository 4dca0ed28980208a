"""A decoder on two engines of the CPU: one reads prompts, the other takes the steps.

An engine that multiplies large matrices fast may be slow with a single token, and the other way round; so may two forms
of the weights in one engine. Each opens the decoder, so there are weights in memory twice. A session of a pair is a
session of each engine over one cache: nothing is copied between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import Target
from blip3v.config import TextConfig
from blip3v.errors import ProviderError
from blip3v.runtime.backends import (
    PREFILL_CHUNK,
    Backend,
    Decoder,
    DecoderSession,
    Execution,
    FloatArray,
    Footprint,
    GraphFile,
    GraphName,
    PromptRow,
    VideoEncoder,
)
from blip3v.runtime.cached_session import CachedSession
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.host_cache import KVCache
from blip3v.runtime.memory import HOST
from blip3v.runtime.onnxruntime_sessions import OnnxRuntimeSession

__all__ = ["PairedBackend", "PairedDecoder", "PairedSession"]

# Their sessions keep keys and values in a ``KVCache``, which either of them reads and writes.
_ENGINES = ("onnxruntime", "onnxruntime:cpu-int8", "openvino", "openvino:cpu-bf16")
# Prompts of at most this many tokens, such as a turn of a few words, cost about as much as a step on either engine.
_SHORT_TOKENS = 8


class PairedBackend:
    """See ``Backend``. Opens decoders alone, and is never what ``auto`` takes.

    Args:
        prefill: reads prompts.
        steps: takes the steps, and reads prompts of a few tokens.

    Raises:
        ProviderError: an engine that keeps its cache for itself.
    """

    rank: Mapping[GraphName, int] = {}

    def __init__(self, prefill: Backend, steps: Backend) -> None:
        self.name = f"{prefill.name}+{steps.name}"
        for backend in (prefill, steps):
            if backend.name not in _ENGINES:
                raise ProviderError(
                    f"back end {self.name!r}: {backend.name} cannot be one of two, because its caches are not in the "
                    f"memory that both work on; allowed: {', '.join(_ENGINES)}"
                )
        self.prefill, self.steps = prefill, steps
        self.devices: tuple[str, ...] = ("cpu",)
        self.targets: tuple[Target, ...] = tuple(each for each in steps.targets if each in prefill.targets)

    def is_installed(self) -> bool:
        """See ``Backend``."""
        return self.prefill.is_installed() and self.steps.is_installed()

    def check_installed(self) -> None:
        """See ``Backend``."""
        self.prefill.check_installed()
        self.steps.check_installed()

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``."""
        packages = {each.name.partition(":")[0] for each in (self.prefill, self.steps)}
        if precision.cache == "float16" and len(packages) > 1:
            return (
                f"{self.name} does not run decoders whose cache is fp16: onnxruntime keeps it so, openvino in fp32; "
                f"choose one of the two, or export with the precision {precision.name}+kv-int8"
            )
        return self.prefill.refusal(precision) or self.steps.refusal(precision)

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``. What the two have not in common stands twice."""
        prefill, steps = self.prefill.execution(precision), self.steps.execution(precision)
        return Execution(
            backend=self.name,
            engine=_both(prefill.engine, steps.engine),
            version=_both(str(prefill.version), str(steps.version)) if self.is_installed() else None,
            device=_both(prefill.device, steps.device),
            dtype=_both(prefill.dtype, steps.dtype),
        )

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``."""
        layer = (precision, weights, group_size, num_inputs)
        return _both(self.prefill.layer_dtype(*layer), self.steps.layer_dtype(*layer))

    def footprint(self, graph: GraphFile) -> Footprint:
        """See ``Backend``. The weights of both."""
        found = [each.footprint(graph) for each in (self.prefill, self.steps)]
        return Footprint(weights_bytes=sum(each.weights_bytes for each in found))

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        return self.prefill.open_s(graph) + self.steps.open_s(graph)

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """See ``Backend``. They share one cache."""
        return self.steps.kv_bytes_per_token(text, graph)

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> VideoEncoder:
        """See ``Backend``; ``parse_backends`` names it for decoders alone."""
        raise AssertionError("the video encoder runs on one engine")

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> PairedDecoder:
        """See ``Backend``. One after the other, since each packs its weights with all threads."""
        prefill = self.prefill.open_decoder(graph, text, threads=threads, chunk=chunk)
        try:
            steps = self.steps.open_decoder(graph, text, threads=threads, chunk=chunk)
        except BaseException:
            prefill.close()
            raise
        return PairedDecoder(self.execution(graph.precision), prefill, steps)


class PairedDecoder:
    """See ``Decoder``."""

    gpu_dtype: np.dtype[Any] | None = None
    max_rows: int | None = None
    memory = HOST
    row_tokens = 0

    def __init__(self, execution: Execution, prefill: Decoder, steps: Decoder) -> None:
        assert prefill.token_bytes == steps.token_bytes, "their caches differ"
        self.execution = execution
        self.dtype = steps.dtype
        self.token_bytes = steps.token_bytes
        self.max_verified = steps.max_verified
        self._prefill, self._steps = prefill, steps

    def session(self, num_rows: int, num_tokens: int) -> PairedSession:
        """See ``Decoder``."""
        # Without room at first, since the two caches become one.
        session = PairedSession(self._prefill.session(num_rows, 0), self._steps.session(num_rows, 0))
        session.reserve(num_tokens)
        return session

    def close(self) -> None:
        """See ``Decoder``."""
        self._prefill.close()
        self._steps.close()


class PairedSession:
    """See ``DecoderSession``: a session of each engine over the cache of one of them.

    Args:
        prefill: without tokens; reads prompts.
        steps: as many rows, without tokens; does all else.
    """

    def __init__(self, prefill: DecoderSession, steps: DecoderSession) -> None:
        assert isinstance(prefill, CachedSession)
        assert isinstance(steps, CachedSession)
        # ONNX Runtime binds a cache of its own kind; OpenVINO takes any.
        owner, other = (prefill, steps) if isinstance(prefill, OnnxRuntimeSession) else (steps, prefill)
        other.use_cache(owner.cache)
        self._prefill: DecoderSession = prefill
        self._steps: DecoderSession = steps
        self._owner: CachedSession[Any, KVCache] = owner
        # What OpenVINO takes for a run depends on the capacity, what ONNX Runtime takes does not.
        self._grows = not (isinstance(prefill, OnnxRuntimeSession) and isinstance(steps, OnnxRuntimeSession))
        self._wanted = 0  # tokens that room was asked for

    @property
    def cache(self) -> KVCache:
        """The memory behind both."""
        return self._owner.cache

    @property
    def lengths(self) -> Sequence[int]:
        """See ``DecoderSession``."""
        return self._steps.lengths

    def reserve(self, num_tokens: int) -> None:
        """Makes room; with OpenVINO checks the memory, and the cache grows with the prompt and at the first step."""
        if self._grows:
            self.cache.check_memory(num_tokens)
        else:
            self.cache.reserve(num_tokens)
        self._wanted = num_tokens

    def prefill(self, rows: Sequence[PromptRow], deadline: Deadline) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        is_short = max(map(len, rows)) <= _SHORT_TOKENS
        return (self._steps if is_short else self._prefill).prefill(rows, deadline)

    def step(self, embeds_BD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        self._steps.reserve(self._wanted)
        return self._steps.step(embeds_BD)

    def verify(self, embeds_tD: FloatArray) -> NDArray[np.float32]:
        """See ``DecoderSession``."""
        self._steps.reserve(max(self._wanted, self.lengths[0] + len(embeds_tD)))
        return self._steps.verify(embeds_tD)

    def truncate(self, num_tokens: int) -> None:
        """See ``DecoderSession``."""
        self._steps.truncate(num_tokens)

    def drop_row(self, row: int) -> None:
        """See ``DecoderSession``."""
        self._steps.drop_row(row)

    def close(self) -> None:
        """See ``DecoderSession``."""
        self._prefill.close()
        self._steps.close()


def _both(prefill: str, steps: str) -> str:
    return steps if prefill == steps else f"{prefill} (prompts) + {steps} (steps)"
