"""The decode step as a CUDA graph: one launch instead of one for each kernel.

A captured graph holds the addresses and shapes of its moment, and is valid only as long as the context that it was
captured from is not set to others. So there is one at most, for the session that stepped last: sessions that take turns
run without. The lengths of the rows are data (``write_indices``), so one graph serves every step of an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from blip3v.runtime.backends.tensorrt.cuda import CudaGraph, Stream

__all__ = ["StepGraph"]


class StepGraph:
    """Enqueues steps, from the second of a kind on as a captured graph.

    Args:
        stream: they run in.
        is_enabled: False: every step is enqueued kernel by kernel.

    Attributes:
        num_launches: of captured graphs so far.
    """

    def __init__(self, stream: Stream, *, is_enabled: bool) -> None:
        self._stream = stream
        self._is_enabled = is_enabled
        self._kind: Hashable = None
        self._graph: CudaGraph | None = None
        self.num_launches = 0

    def run(
        self, kind: Hashable, bind: Callable[[], None], enqueue: Callable[[], None], is_capturable: Callable[[], bool]
    ) -> None:
        """Enqueues one step.

        Args:
            kind: what addresses and shapes depend on.
            bind: sets them in the context; not called if they are set.
            enqueue: puts the copies and the engine's work into the stream.
            is_capturable: whether that can be captured now.
        """
        if not self._is_enabled or kind != self._kind:
            self._graph, self._kind = None, None
            bind()
            enqueue()  # also what TensorRT does once after a change of shapes, which a capture must not hold
            self._kind = kind
            return
        if self._graph is None and is_capturable():
            self._graph = self._stream.capture(enqueue)
        if self._graph is None:
            enqueue()
        else:
            self.num_launches += 1
            self._stream.launch(self._graph)
