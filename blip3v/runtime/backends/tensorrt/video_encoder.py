"""The opened video encoder on TensorRT. Letters: B clips, F frames, S side."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip3v.errors import RequestError
from blip3v.runtime.backends import Execution, FloatArray, GraphFile, still_open
from blip3v.runtime.backends.tensorrt.cuda import DeviceMemory, PinnedArray
from blip3v.runtime.backends.tensorrt.engine import OpenEngine
from blip3v.runtime.cancellation import Deadline, held
from blip3v.runtime.gpu_array import GpuArray, GpuMemory

__all__ = ["TensorRtVideoEncoder"]

_FRAMES = "frames"


class TensorRtVideoEncoder:
    """See ``VideoEncoder``. Runs of several threads queue up: they share one context and its memory.

    A run that has begun on the GPU goes on to its end; the deadline is looked at before and after it.
    """

    def __init__(self, graph: GraphFile, execution: Execution) -> None:
        engine = OpenEngine(graph, "video_encoder")
        self.execution = engine.execution(execution)
        self.gpu_dtype: np.dtype[Any] | None = np.dtype(engine.inputs[0].dtype)
        self._opened: _OpenVideoEncoder | None = _OpenVideoEncoder(engine)

    def run(self, frames_BF3SS: NDArray[np.float32] | GpuArray, deadline: Deadline) -> dict[str, FloatArray]:
        """See ``VideoEncoder``.

        Raises:
            RequestError: more clips or frames than the engine was built for.
        """
        opened = still_open(self._opened, "video encoder")
        with held(opened.lock, deadline):
            outputs = opened.run(frames_BF3SS)
        deadline.check()
        return outputs

    def close(self) -> None:
        """See ``VideoEncoder``. Keeps the kernels that were compiled, once no call is running."""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.keep_kernels()


class _OpenVideoEncoder:
    """The engine with buffers for the largest clips that it takes, allocated once."""

    def __init__(self, engine: OpenEngine) -> None:
        self.lock = threading.Lock()
        self._engine = engine
        self._context = context = engine.context(0)
        self._smallest, self._largest = engine.smallest_and_largest(_FRAMES, 0)
        self._dtype = np.dtype(engine.inputs[0].dtype)
        cuda = engine.cuda
        self._host_frames = PinnedArray(cuda, self._largest, self._dtype)
        self._frames = DeviceMemory(cuda, math.prod(self._largest) * self._dtype.itemsize, "the frames of a clip")
        with engine.trt.calling("opening the video encoder"):
            context.set_shape(_FRAMES, self._largest)
            largest = {output.name: context.shape(output.name) for output in engine.outputs}
        dtypes = {output.name: np.dtype(output.dtype) for output in engine.outputs}
        self._dtypes = dtypes
        self._host_outputs = {name: PinnedArray(cuda, shape, dtypes[name]) for name, shape in largest.items()}
        self._outputs = {
            name: DeviceMemory(cuda, math.prod(shape) * dtypes[name].itemsize, f"the output {name}")
            for name, shape in largest.items()
        }

    def keep_kernels(self) -> None:
        """See ``OpenEngine``."""
        with self.lock:
            self._engine.keep_kernels()

    def run(self, frames_BF3SS: NDArray[np.float32] | GpuArray) -> dict[str, FloatArray]:
        """Every output, for frames on the host or on the device."""
        self._check(frames_BF3SS.shape)
        stream = self._engine.stream
        frames = self._on_device(frames_BF3SS)  # held until the run is through
        with self._engine.trt.calling("running the video encoder"):
            self._context.set_shape(_FRAMES, frames.shape)
            self._context.set_address(_FRAMES, frames.address)
            shapes = {name: self._context.shape(name) for name in self._outputs}
            for name, memory in self._outputs.items():
                self._context.set_address(name, memory.address)
            self._context.enqueue()
            for name, memory in self._outputs.items():
                num_bytes = math.prod(shapes[name]) * self._dtypes[name].itemsize
                stream.to_host(self._host_outputs[name].address, memory.address, num_bytes)
        stream.synchronize()
        return {name: self._host_outputs[name].view(shape).copy() for name, shape in shapes.items()}

    def _on_device(self, frames_BF3SS: NDArray[np.float32] | GpuArray) -> GpuMemory:
        """The frames on the device; those of the host are copied there first."""
        stream = self._engine.stream
        if isinstance(frames_BF3SS, GpuArray):
            return frames_BF3SS.memory(stream.handle)
        pinned = self._host_frames.view(frames_BF3SS.shape)
        pinned[...] = frames_BF3SS
        stream.to_device(self._frames.address, self._host_frames.address, pinned.nbytes)
        return GpuMemory(address=self._frames.address, shape=pinned.shape, dtype=self._dtype.name, owner=self._frames)

    def _check(self, shape: tuple[int, ...]) -> None:
        fits = len(shape) == len(self._largest) and all(
            low <= size <= high for low, size, high in zip(self._smallest, shape, self._largest, strict=True)
        )
        if not fits:
            raise RequestError(
                f"frames have shape {shape}; the engine takes {self._smallest} to {self._largest} (clips, frames, "
                "channels, height, width)",
                remedy="encode fewer clips at once, or build engines with a larger `max_batch_size`",
            )
