"""TensorRT and TensorRT-RTX on an NVIDIA GPU: the engines that ``blip3v build`` put into the bundle.

``selection.py`` finds the engine that fits this machine, ``engine.py`` loads it, ``video_encoder.py`` and
``decoder.py`` run it. The native API of TensorRT and cuda-python are used, PyTorch is not. None of these modules is
imported before a graph is opened or what that takes is asked. Not here: building engines (``export/engines.py``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from blip3v.bundle.engines import LIBRARY_NAMES, BuiltGraph, EngineRecord
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import Target
from blip3v.config import TextConfig
from blip3v.errors import ArtifactError, BackendError, ProviderError
from blip3v.runtime import nvidia
from blip3v.runtime.backends import PREFILL_CHUNK, Execution, Footprint, GraphFile, GraphName
from blip3v.runtime.backends.tensorrt.cuda import Cuda, has_cuda_python
from blip3v.runtime.backends.tensorrt.library import installed_libraries, load_only
from blip3v.runtime.host_cache import cache_bytes

if TYPE_CHECKING:
    from blip3v.runtime.backends.tensorrt.decoder import TensorRtDecoder
    from blip3v.runtime.backends.tensorrt.video_encoder import TensorRtVideoEncoder

__all__ = ["BACKEND"]

# Hashing the engine and copying it to the GPU. An assumption: nobody has measured it yet.
_OPEN_S_PER_GIB = 2.0
# CUDA's context and pinned buffers, of each graph; an assumption too. The weights are on the GPU.
_HOST_BYTES = 256 * 2**20


class TensorRtBackend:
    """See ``Backend``.

    Attributes:
        cuda_graphs: whether decode steps run as captured CUDA graphs where that is possible; read when a decoder opens.
    """

    name = "tensorrt"
    devices = ("cuda",)
    targets: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx", "tensorrt-legacy")
    rank: Mapping[GraphName, int] = {"video_encoder": 4, "decoder": 4}
    cuda_graphs = True

    def is_installed(self) -> bool:
        """See ``Backend``."""
        if not installed_libraries() or not has_cuda_python():
            return False
        try:
            Cuda().require_device()
        except ProviderError:
            return False
        return True

    def check_installed(self) -> None:
        """See ``Backend``."""
        load_only()
        Cuda().require_device()

    def refusal(self, precision: GraphPrecision) -> str | None:
        """See ``Backend``: nothing here. What TensorRT does not build has no engine, which opening says."""
        return None

    def execution(self, precision: GraphPrecision) -> Execution:
        """See ``Backend``. What an opened graph says of itself names the library that its engine was built with."""
        tensorrt, device = None, "CUDA"
        with contextlib.suppress(BackendError):  # what is missing here, opening says
            tensorrt = load_only()
            device = Cuda().device_name()
        return Execution(
            backend=self.name,
            engine="TensorRT" if tensorrt is None else LIBRARY_NAMES[tensorrt.library],
            version=None if tensorrt is None else tensorrt.version,
            device=device,
            dtype=_dtype(precision, precision.weights),
        )

    def layer_dtype(self, precision: GraphPrecision, weights: str, group_size: int | None, num_inputs: int) -> str:
        """See ``Backend``. Weights in blocks are widened to the dtype of their inputs."""
        return _dtype(precision, weights)

    def footprint(self, graph: GraphFile) -> Footprint:
        """See ``Backend``. As large as the engine that fits; without one, opening has nothing to load."""
        memory, planned = nvidia.gpu_memory(), _planned(graph)
        if planned is None:
            return Footprint(weights_bytes=graph.weights_bytes, memory=memory, host_bytes=_HOST_BYTES, caches=memory)
        record, built = planned
        return Footprint(
            weights_bytes=built.size_bytes,
            memory=memory,
            host_bytes=_HOST_BYTES,
            activation_bytes=built.activation_bytes,
            caches=memory,
            row_tokens=record.limits.max_seq_len,
        )

    def open_s(self, graph: GraphFile) -> float:
        """See ``Backend``."""
        return _OPEN_S_PER_GIB * graph.weights_bytes / 2**30

    def kv_bytes_per_token(self, text: TextConfig, graph: GraphFile) -> int:
        """See ``Backend``. Engines of the older form have two caches, as ``device_cache.py`` says."""
        num_copies = 2 if graph.target == "tensorrt-legacy" else 1
        return num_copies * cache_bytes(text, np.dtype(graph.precision.cache or graph.precision.io), 1, 1)

    def open_video_encoder(self, graph: GraphFile, *, threads: int | None = None) -> TensorRtVideoEncoder:
        """See ``Backend``. ``threads`` has no meaning on a GPU."""
        self.check_installed()
        # Not before: the runtime must stay light where TensorRT is not used.
        from blip3v.runtime.backends.tensorrt.video_encoder import TensorRtVideoEncoder

        return TensorRtVideoEncoder(graph, self.execution(graph.precision))

    def open_decoder(
        self, graph: GraphFile, text: TextConfig, *, threads: int | None = None, chunk: int = PREFILL_CHUNK
    ) -> TensorRtDecoder:
        """See ``Backend``. Chunks are no longer than the engine was built for."""
        self.check_installed()
        from blip3v.runtime.backends.tensorrt.decoder import TensorRtDecoder

        execution = self.execution(graph.precision)
        return TensorRtDecoder(graph, execution, text, chunk, cuda_graphs=self.cuda_graphs)


BACKEND = TensorRtBackend()


def _planned(graph: GraphFile) -> tuple[EngineRecord, BuiltGraph] | None:
    """The engine that opening takes; None: there is none, or no library or GPU for it, which opening says."""
    # Not before: the runtime must stay light where TensorRT is not used.
    from blip3v.runtime.backends.tensorrt.engine import this_machine
    from blip3v.runtime.backends.tensorrt.selection import built_with, planned_engine

    with contextlib.suppress(ArtifactError, BackendError):
        return planned_engine(graph, this_machine(Cuda(), built_with(graph)))
    return None


def _dtype(precision: GraphPrecision, weights: str) -> str:
    if weights == "int8" and precision.activations == "int8":
        return "int8"
    return "fp16" if precision.io == "float16" and weights != "float32" else "fp32"
