"""The fakes have no name and no parameter that the real packages lack, and no kernel of theirs is skipped."""

from __future__ import annotations

import json

import cuda_names
import pytest
from cuda_stand_in import FakeDevice, fake_cuda
from tensorrt_stand_in import fake_tensorrt, mirrored

real = pytest.importorskip("tensorrt_rtx_bindings")


class _OfAnotherName:
    def set_tensor_memory(self, name: str, memory: int) -> bool: ...  # type: ignore[empty-body]


class _WithOtherParameters:
    def set_tensor_address(self, name: str) -> bool: ...  # type: ignore[empty-body]


class _WithoutTheProperty:
    @property
    def get_tensor_shape(self) -> int: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("fake", "message"),
    [
        (_OfAnotherName, "IExecutionContext has no set_tensor_memory"),
        (_WithOtherParameters, r"IExecutionContext.set_tensor_address takes no \['name'\]"),
        (_WithoutTheProperty, "IExecutionContext.get_tensor_shape is not a property"),
    ],
)
def test_a_fake_class_with_a_name_or_parameter_that_the_real_one_lacks_is_an_error(fake: type, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        mirrored(fake, real.IExecutionContext)


def test_the_fake_library_is_made_without_an_error_and_has_nothing_else() -> None:
    rtx, tensorrt = (fake_tensorrt(real, FakeDevice(library)) for library in ("tensorrt_rtx", "tensorrt"))
    assert rtx.ILogger is real.ILogger
    assert not hasattr(rtx, "Builder")
    assert hasattr(rtx, "CudaGraphStrategy")
    assert not hasattr(tensorrt, "CudaGraphStrategy")


def test_the_fake_cuda_has_the_committed_names_and_parameters_alone() -> None:
    module = fake_cuda(FakeDevice())
    assert not hasattr(module, "cudaMemcpy")
    with pytest.raises(TypeError):
        module.cudaMalloc()
    status, address = module.cudaMalloc(16)
    assert (status, address % 256) == (module.cudaError_t.cudaSuccess, 0)


def test_memory_that_was_not_allocated_cannot_be_copied() -> None:
    device = FakeDevice()
    module = fake_cuda(device)
    _, stream = module.cudaStreamCreateWithFlags(module.cudaStreamNonBlocking)
    (_, on_device), (_, on_host) = module.cudaMalloc(16), module.cudaMallocHost(16)
    kind = module.cudaMemcpyKind.cudaMemcpyHostToDevice
    module.cudaMemcpyAsync(on_device, on_host, 17, kind, stream)
    with pytest.raises(AssertionError, match="not inside an allocation"):
        module.cudaStreamSynchronize(stream)
    module.cudaMemcpyAsync(on_host, on_device, 16, kind, stream)
    with pytest.raises(AssertionError, match="memory is used as"):
        module.cudaStreamSynchronize(stream)


def test_the_committed_names_are_those_of_the_installed_package() -> None:
    """Where cuda-bindings is installed; it needs no GPU."""
    runtime = pytest.importorskip("cuda.bindings.runtime")
    committed = json.loads(cuda_names.FILE.read_text("utf-8"))
    assert cuda_names.read_names(runtime) == {name: value for name, value in committed.items() if name != "package"}
