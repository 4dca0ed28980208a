"""A fake of TensorRT's runtime for machines without a GPU, whose names and signatures are those of the real bindings.

``mirrored`` compares each fake class with the real one: an attribute that the real one lacks, or a method with other
parameters, is an error as soon as this module's fakes are made. Everything else that the back end touches (the logger,
enumerations) is the real module's own. Engines are read from a plan that names the ONNX graph, and run by ONNX Runtime
on the memory of ``cuda_stand_in``.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from cuda_stand_in import FakeDevice, fake_cuda
from driver_stand_in import FakeDriver

from blip3v.bundle.engines import Library
from blip3v.runtime import nvidia, tensorrt_library

_NUMPY = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF", "tensor(int64)": "INT64"}
_DTYPES = {"FLOAT": np.float32, "HALF": np.float16, "INT64": np.int64}
_ALIGNMENT = 256
Profile = Mapping[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]


def plan_bytes(graph: Path, profiles: list[Profile], *, capacity: int | None, is_aliased: bool = True) -> bytes:
    """An engine as this fake reads it."""
    plan = {"graph": str(graph), "profiles": profiles, "capacity": capacity, "is_aliased": is_aliased}
    return json.dumps(plan).encode()


def mirrored(fake: type, real: type, *, also: tuple[str, ...] = ()) -> type:
    """``fake``, once each of its public names, and those in ``also``, is known to be in ``real``, with its parameters.

    Raises:
        AssertionError: the real class has no such name, or takes other parameters.
    """
    for name, member in vars(fake).items():
        if name.startswith("_") and name not in also:
            continue
        assert hasattr(real, name), f"{real.__name__} has no {name}"
        its_own = getattr(real, name)
        if isinstance(member, property):
            assert isinstance(its_own, property), f"{real.__name__}.{name} is not a property"
            continue
        parameters = list(inspect.signature(member).parameters)[1:]
        assert parameters in _overloads(its_own.__doc__, name), f"{real.__name__}.{name} takes no {parameters}"
    return fake


def _overloads(docstring: str, name: str) -> list[list[str]]:
    """Names of the parameters of each overload, without self, from what pybind11 writes into the docstring."""
    return [
        re.findall(r"(\w+): ", re.sub(r"<[^<>]*>|\[[^\[\]]*\]", "", found))
        for found in re.findall(rf"{re.escape(name)}\(self: [^,)]+(?:, )?(.*?)\) -> ", docstring)
    ]


def fake_tensorrt(real: ModuleType, device: FakeDevice) -> ModuleType:
    """The module of ``device.library``. TensorRT lacks what only the real module's TensorRT-RTX has."""
    module = ModuleType(device.library)
    module.__version__ = device.version  # type: ignore[attr-defined]

    class Runtime(_Runtime):
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, real.ILogger)
            self._real, self._device, self._logger = real, device, logger

    mirrored(Runtime, real.Runtime, also=("__init__",))
    mirrored(_Runtime, real.Runtime)
    mirrored(_Engine, real.ICudaEngine)
    mirrored(_Context, real.IExecutionContext)
    mirrored(_RuntimeConfig, real.IRuntimeConfig)
    mirrored(_RuntimeCache, real.IRuntimeCache)
    module.Runtime = Runtime  # type: ignore[attr-defined]
    own = ["ILogger", "TensorIOMode", "ExecutionContextAllocationStrategy"]
    for name in own + ["CudaGraphStrategy"] * (device.library == "tensorrt_rtx"):
        setattr(module, name, getattr(real, name))
    return module


def install(monkeypatch: pytest.MonkeyPatch, device: FakeDevice, real: ModuleType) -> None:
    """Makes the fakes importable as cuda-bindings and the library of the device, and loadable as the driver.

    The other library is hidden.
    """
    modules = {name: ModuleType(name) for name in ("cuda", "cuda.bindings")}
    modules["cuda"].__path__ = modules["cuda.bindings"].__path__ = []
    modules |= {"cuda.bindings.runtime": fake_cuda(device), device.library: fake_tensorrt(real, device)}
    for name, each in modules.items():
        each.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, each)
    own = tensorrt_library._MODULES[device.library]
    driver = FakeDriver(["Fake GPU"], free=device.free_bytes)
    monkeypatch.setattr(nvidia, "_load", lambda: driver)
    monkeypatch.setattr(
        tensorrt_library, "_MODULES", {device.library: own, _other(device.library): ("absent", "absent")}
    )


def _other(library: Library) -> Library:
    return "tensorrt" if library == "tensorrt_rtx" else "tensorrt_rtx"


class _Runtime:
    _real: ModuleType
    _device: FakeDevice
    _logger: Any

    def deserialize_cuda_engine(self, serialized_engine: Any) -> Any:
        try:
            plan = json.loads(bytes(memoryview(serialized_engine)))
        except ValueError:
            self._logger.log(self._real.ILogger.ERROR, "Serialization assertion magicTagRead == kMAGIC_TAG failed")
            return None
        return _Engine(self._real, self._device, self._logger, plan)


class _Engine:
    def __init__(self, real: ModuleType, device: FakeDevice, logger: Any, plan: dict[str, Any]) -> None:
        self._real, self._device, self._logger, self._plan = real, device, logger, plan
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        self._session = onnxruntime.InferenceSession(self._plan["graph"], options, providers=["CPUExecutionProvider"])
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._outputs = {node.name: node for node in self._session.get_outputs()}

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._plan["profiles"])

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> Any:
        modes = self._real.TensorIOMode
        return modes.INPUT if name in self._inputs else modes.OUTPUT

    def get_tensor_dtype(self, name: str) -> Any:
        return getattr(self._real.DataType, _NUMPY[self._node(name).type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {"capacity": self._plan["capacity"]}
        shape = self._node(name).shape
        return tuple(axis if isinstance(axis, int) else sizes.get(axis) or -1 for axis in shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert name in self._inputs
        return [tuple(shape) for shape in self._plan["profiles"][profile_index][name]]

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        assert profile_index < self.num_optimization_profiles
        return self._device.activation_bytes

    def get_aliased_input_tensor(self, name: str) -> str | None:
        is_aliased = self._plan["is_aliased"] and name.startswith("present.")
        return name.replace("present.", "past.") if is_aliased else None

    def create_runtime_config(self) -> Any:
        assert self._device.library == "tensorrt_rtx"
        return _RuntimeConfig(self._real, self._device)

    def create_execution_context(self, strategy: Any) -> Any:
        if isinstance(strategy, _RuntimeConfig):
            self._device.num_rtx_graphs += strategy.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
            return _Context(self, strategy._cache)
        assert isinstance(strategy, self._real.ExecutionContextAllocationStrategy)
        return _Context(self, None)

    def _node(self, name: str) -> Any:
        return (self._inputs | self._outputs)[name]

    def _dtype(self, name: str) -> Any:
        return np.dtype(_DTYPES[_NUMPY[self._node(name).type]])


class _RuntimeConfig:
    def __init__(self, real: ModuleType, device: FakeDevice) -> None:
        self._real, self._device = real, device
        self._cache: _RuntimeCache | None = None
        self._graphs = real.CudaGraphStrategy.DISABLED

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        assert isinstance(strategy, self._real.ExecutionContextAllocationStrategy)

    @property
    def cuda_graph_strategy(self) -> Any:
        return self._graphs

    @cuda_graph_strategy.setter
    def cuda_graph_strategy(self, strategy: Any) -> None:
        assert isinstance(strategy, self._real.CudaGraphStrategy)
        self._graphs = strategy

    def create_runtime_cache(self) -> Any:
        return _RuntimeCache(self._device)

    def set_runtime_cache(self, cache: Any) -> bool:
        assert isinstance(cache, _RuntimeCache)
        self._cache = cache
        return True


class _RuntimeCache:
    """Names of kernels, with the version and GPU that they are for."""

    def __init__(self, device: FakeDevice) -> None:
        self._host = [device.version, list(device.capability)]
        self._kernels: set[str] = set()

    def deserialize(self, blob: Any) -> bool:
        try:
            host, kernels = json.loads(bytes(memoryview(blob)))
        except ValueError:
            return False
        if host != self._host:
            return False
        self._kernels |= set(kernels)
        return True

    def serialize(self) -> Any:
        return memoryview(json.dumps([self._host, sorted(self._kernels)]).encode())


class _Context:
    def __init__(self, engine: _Engine, cache: _RuntimeCache | None) -> None:
        self._engine, self._profile, self._cache = engine, 0, cache
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._is_fresh = False  # whether a run since the last change of shapes has done what a capture must not hold

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return 0 <= profile_index < self._engine.num_optimization_profiles

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.get_tensor_profile_shape(name, self._profile)
        assert isinstance(shape, tuple)
        fits = len(shape) == len(low) and all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True))
        if not fits:
            return self._fails(f"{name}: {shape} is outside the profile {self._profile}: {low} to {high}")
        self._is_fresh = self._is_fresh and self._shapes.get(name) == shape
        self._shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._shapes:
            return self._shapes[name]
        zeros = {each: np.zeros(self._shapes[each], self._engine._dtype(each)) for each in self._engine._inputs}
        return self._engine._session.run([name], zeros)[0].shape

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._engine._node(name)
        if memory % _ALIGNMENT:
            return self._fails(f"{name}: {memory:x} is not aligned")
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine, device = self._engine, self._engine._device
        shapes, addresses = dict(self._shapes), dict(self._addresses)
        missing = {*engine._inputs, *engine._outputs} - set(addresses) | set(engine._inputs) - set(shapes)
        if missing:
            return self._fails(f"no shape or address for {sorted(missing)}")
        for output in engine._outputs:
            aliased = engine.get_aliased_input_tensor(output)
            if aliased is not None and addresses[aliased] != addresses[output]:
                return self._fails(f"{output} has to lie where {aliased} lies")
            if aliased is None and addresses[output] in {addresses[name] for name in engine._inputs}:
                return self._fails(f"{output} lies where an input lies")
        is_captured = device.is_capturing(stream_handle)
        assert self._is_fresh or not is_captured, "captured before a run with these shapes"
        assert not is_captured or device.library == "tensorrt", "TensorRT-RTX captures by itself"
        self._is_fresh = True
        self._compile()

        def run() -> None:
            if is_captured:
                assert (shapes, addresses) == (self._shapes, self._addresses), (
                    "the context has changed since the capture"
                )
            feeds = {name: self._view(name, addresses, shapes[name]).copy() for name in engine._inputs}
            for name, found in zip(engine._outputs, engine._session.run(None, feeds), strict=True):
                self._view(name, addresses, found.shape)[...] = found

        device.enqueue(stream_handle, run)
        return True

    def _compile(self) -> None:
        """What TensorRT-RTX does before a kernel first runs."""
        kernel = f"{Path(self._engine._plan['graph']).stem} {self._profile}"
        if self._cache is not None and kernel not in self._cache._kernels:
            self._cache._kernels.add(kernel)
            self._engine._device.num_compiled += 1

    def _view(self, name: str, addresses: Mapping[str, int], shape: tuple[int, ...]) -> Any:
        dtype = self._engine._dtype(name)
        size = int(np.prod(shape)) * dtype.itemsize
        return self._engine._device.view(addresses[name], size, "device").view(dtype).reshape(shape)

    def _fails(self, message: str) -> bool:
        self._engine._logger.log(self._engine._real.ILogger.ERROR, message)
        return False
