"""The decode step as a CUDA graph: one launch instead of one for each kernel.

A captured graph holds the addresses and shapes of its moment, and is valid only as long as the context that it was
captured from is not set to others. So there is one at most, for the session that stepped last: sessions that take turns
run without. The lengths of the rows are data (``write_indices``), so one graph serves every step of an answer.
TensorRT-RTX captures by itself, since it alone knows when its kernels for new shapes are compiled (``engine.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from blip3v.runtime.backends.tensorrt.cuda import CudaGraph, Stream

__all__ = ["StepGraph"]


class StepGraph:
    """Enqueues steps, from the second of a kind on as a captured graph.

    Args:
        stream: they run in.
        captures: False: every step is enqueued kernel by kernel.
    """

    def __init__(self, stream: Stream, *, captures: bool) -> None:
        self._stream = stream
        self._captures = captures
        self._kind: Hashable = None
        self._graph: CudaGraph | None = None

    def forget(self) -> None:
        """Is called when the context is set to other addresses or shapes."""
        self._kind, self._graph = None, None

    def run(self, kind: Hashable, bind: Callable[[], None], enqueue: Callable[[], None]) -> None:
        """Enqueues one step.

        Args:
            kind: what addresses and shapes depend on; not None.
            bind: sets them in the context; called only if the step before was of another kind.
            enqueue: puts the copies and the engine's work into the stream.
        """
        if kind != self._kind:
            self.forget()
            bind()
            enqueue()  # also what TensorRT does once after a change of shapes, which a capture must not hold
            self._kind = kind
        elif not self._captures:
            enqueue()
        else:
            if self._graph is None:
                self._graph = self._stream.capture(enqueue)
            self._stream.launch(self._graph)
