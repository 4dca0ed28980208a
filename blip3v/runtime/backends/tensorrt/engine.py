"""An engine of a bundle, chosen, checked and loaded; and contexts that run it, each with one optimisation profile."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection
from typing import Any

import numpy as np

from blip3v.bundle.engines import LIBRARY_NAMES, EngineHost, Library
from blip3v.errors import ArtifactError, BackendError, OutOfMemoryError
from blip3v.runtime import nvidia
from blip3v.runtime.backends import Execution, FoundTensor, GraphFile, GraphName, check_io
from blip3v.runtime.backends.tensorrt.cuda import Cuda, Stream
from blip3v.runtime.backends.tensorrt.library import Caller, needed_libraries
from blip3v.runtime.backends.tensorrt.runtime_cache import RuntimeCache, cache_file
from blip3v.runtime.backends.tensorrt.selection import built_with, choose_engine
from blip3v.runtime.engine_errors import path_for_engine
from blip3v.runtime.tensorrt_library import context_bytes, host_platform, load_tensorrt
from blip3v.units import format_bytes

__all__ = ["Context", "OpenEngine", "this_machine"]

Shape = tuple[int, ...]

# TensorRT's name of a dtype -> numpy's. One that is not here keeps its name, and ``check_io`` refuses it.
_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT64": "int64", "INT32": "int32", "INT8": "int8"}
_LOG = logging.getLogger(__name__)


def this_machine(cuda: Cuda, built_with: Collection[Library]) -> list[EngineHost]:
    """This machine and its GPU, once with each library that is needed for engines.

    Args:
        cuda: the runtime.
        built_with: what built the engines.

    Raises:
        ProviderError: no library is installed, one is broken, or there is no GPU.
    """
    libraries = [load_tensorrt(library) for library in needed_libraries(built_with)]
    cuda.require_device()
    return [
        EngineHost(
            library=tensorrt.library,
            library_version=tensorrt.version,
            compute_capability=cuda.compute_capability(),
            platform=host_platform(),
        )
        for tensorrt in libraries
    ]


class OpenEngine:
    """The engine of one graph, loaded, with a stream of its own.

    Args:
        graph: the file, with the folder of its bundle's engines.
        name: which of the two graphs it is.

    Raises:
        ProviderError: a package or a GPU is missing.
        EngineMismatchError: no engine was built for this machine.
        ArtifactError: its file or record is damaged, or its inputs or outputs are not those of ``graph.io``.
        OutOfMemoryError: the GPU has too little memory for its weights, or for its activations.
        BackendError: TensorRT does not load it.
    """

    def __init__(self, graph: GraphFile, name: GraphName) -> None:
        self.cuda = Cuda()
        found = choose_engine(graph, name, this_machine(self.cuda, built_with(graph)))
        self.path = found.path
        self.trt = Caller(load_tensorrt(found.record.library))
        with self.trt.calling(f"opening {found.path}"):
            self._runtime = self.trt.module.Runtime(self.trt.logger)
            # Mapped: the weights go to the device, and the system can drop the pages that they came from.
            plan = np.memmap(path_for_engine(found.path), np.uint8, "r")
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            self.trt.require(self._engine is not None, "reading the plan")
            self.inputs, self.outputs = self._tensors("INPUT"), self._tensors("OUTPUT")
        check_io(self.inputs, self.outputs, graph)
        self._require_memory(context_bytes(self._engine))
        self.stream = Stream(self.cuda)
        self._kernels: RuntimeCache | None = None
        if self.trt.tensorrt.is_rtx:
            path = cache_file(found.path, self.cuda.compute_capability())
            self._kernels = RuntimeCache(self.trt, self._engine, path)
        _LOG.info("opened %s", found.path)

    def execution(self, planned: Execution) -> Execution:
        """``planned`` with the library that really runs the engine."""
        tensorrt = self.trt.tensorrt
        return dataclasses.replace(planned, engine=LIBRARY_NAMES[tensorrt.library], version=tensorrt.version)

    @property
    def num_profiles(self) -> int:
        """Optimisation profiles that it was built with."""
        return int(self._engine.num_optimization_profiles)

    def smallest_and_largest(self, name: str, profile: int) -> tuple[Shape, Shape]:
        """The shapes that a profile admits for an input."""
        smallest, _, largest = self._engine.get_tensor_profile_shape(name, profile)
        return tuple(smallest), tuple(largest)

    def is_aliased(self, output: str) -> bool:
        """Whether an output has to lie where one of the inputs lies. No library knew that before 10.15."""
        known = hasattr(self._engine, "get_aliased_input_tensor")
        return known and bool(self._engine.get_aliased_input_tensor(output))

    def context(self, profile: int, *, cuda_graphs: bool = False) -> Context:
        """A new context that runs one profile; its memory on the device is what that profile needs.

        Args:
            profile: its number.
            cuda_graphs: whether TensorRT-RTX captures runs as CUDA graphs; no effect with TensorRT, whose runs
                ``StepGraph`` captures.
        """
        module = self.trt.module
        with self.trt.calling(f"opening {self.path}"):
            options = module.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
            if self.trt.tensorrt.is_rtx:
                strategy, options = options, self._engine.create_runtime_config()
                options.set_execution_context_allocation_strategy(strategy)
                if self._kernels is not None:
                    self._kernels.attach(options)
                if cuda_graphs:
                    options.cuda_graph_strategy = module.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(options)
            self.trt.require(context is not None, "creating an execution context")
            chosen = context.set_optimization_profile_async(profile, self.stream.handle)
            self.trt.require(chosen, f"choosing the optimisation profile {profile}")
        self.stream.synchronize()
        return Context(self, context, profile)

    def keep_kernels(self) -> None:
        """Keeps what TensorRT-RTX compiled in the runs so far for the next opening; raises nothing.

        With TensorRT it does nothing. No run may be on its way.
        """
        if self._kernels is None:
            return
        try:
            self.stream.synchronize()  # the first call of a thread makes the GPU's context current
        except BackendError as error:  # what runs had failed with was told then
            _LOG.info("compiled kernels are not kept: %s", error)
            return
        self._kernels.save()

    def _require_memory(self, num_bytes: int) -> None:
        memory = nvidia.gpu_memory()
        free = memory.free_bytes()
        if free is not None and num_bytes > free:
            raise OutOfMemoryError(
                f"{memory.name} has {format_bytes(free)} free, and {self.path} needs {format_bytes(num_bytes)} for "
                "activations",
                remedy="end other programs that use it, or build engines with a smaller `max_batch_size`",
            )

    def _tensors(self, mode: str) -> list[FoundTensor]:
        wanted = getattr(self.trt.module.TensorIOMode, mode)
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        return [self._tensor(name) for name in names if self._engine.get_tensor_mode(name) == wanted]

    def _tensor(self, name: str) -> FoundTensor:
        dtype = str(self._engine.get_tensor_dtype(name).name)
        axes = ["free" if size < 0 else int(size) for size in self._engine.get_tensor_shape(name)]
        return FoundTensor(name, _DTYPES.get(dtype, dtype), axes)


class Context:
    """Runs one profile of an engine. One thread at a time.

    Attributes:
        profile: its number.
    """

    def __init__(self, engine: OpenEngine, context: Any, profile: int) -> None:
        # First, so that it is freed before the engine and its runtime cache, which have to outlive it.
        self._context = context
        self.engine = engine
        self.profile = profile

    def largest(self, name: str) -> Shape:
        """The largest shape of an input that it takes."""
        return self.engine.smallest_and_largest(name, self.profile)[1]

    def set_shape(self, name: str, shape: Shape) -> None:
        """Sets the shape of an input; it stays until it is set again."""
        self._must(self._context.set_input_shape(name, shape), f"setting the shape of {name} to {shape}")

    def shape(self, name: str) -> Shape:
        """The shape of an output for the shapes of the inputs that are set."""
        shape = tuple(int(size) for size in self._context.get_tensor_shape(name))
        if any(size < 0 for size in shape):
            raise ArtifactError(f"{self.engine.path}: the shape of {name} depends on values; export the bundle again")
        return shape

    def set_address(self, name: str, address: int) -> None:
        """Sets where an input is read or an output is written; it stays until it is set again."""
        self._must(self._context.set_tensor_address(name, address), f"setting the memory of {name}")

    def enqueue(self) -> None:
        """Puts one run into the engine's stream."""
        self._must(self._context.execute_async_v3(self.engine.stream.handle), "enqueueing")

    def _must(self, succeeded: object, doing: str) -> None:
        self.engine.trt.require(succeeded, doing)
