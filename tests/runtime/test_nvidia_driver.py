"""What the NVIDIA driver says. ``FakeDriver`` stands for its library, which this machine may not have."""

from __future__ import annotations

from pathlib import Path

import pytest
from driver_stand_in import FakeDriver

from blip3v.runtime import memory, nvidia
from blip3v.runtime.nvidia import Driver, Gpu


def test_every_gpu_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "_load", lambda: FakeDriver(["NVIDIA A", "NVIDIA B"]))
    (tmp_path / "sys/module/nvidia").mkdir(parents=True)
    (tmp_path / "sys/module/nvidia/version").write_text("580.65.06\n")
    assert nvidia.query(tmp_path) == Driver(
        version="580.65.06",
        cuda="13.2",
        gpus=(
            Gpu(name="NVIDIA A", memory_bytes=2**33, compute_capability="8.6"),
            Gpu(name="NVIDIA B", memory_bytes=2**34, compute_capability="8.7"),
        ),
        problem="",
    )


@pytest.mark.parametrize(
    ("library", "problem"),
    [
        (FakeDriver([], 100), "the NVIDIA driver says: no CUDA-capable device is detected"),
        (FakeDriver([], 999), "the NVIDIA driver says: error 999"),
        (FakeDriver([]), "the NVIDIA driver has no GPU"),
    ],
)
def test_without_a_gpu_the_driver_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: FakeDriver, problem: str
) -> None:
    monkeypatch.setattr(nvidia, "_load", lambda: library)
    assert nvidia.query(tmp_path) == Driver(version=None, cuda="13.2", gpus=(), problem=problem)


def test_this_machine_has_gpus_or_a_reason() -> None:
    found = nvidia.query()
    assert bool(found.gpus) != bool(found.problem)
    if found.cuda is None:
        assert found.problem.startswith("there is no NVIDIA driver (")


def test_what_is_free_is_asked_in_a_context_that_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = FakeDriver(["NVIDIA A", "NVIDIA B"], free=lambda: 5 * 2**30)
    monkeypatch.setattr(nvidia, "_load", lambda: driver)
    found = nvidia.gpu_memory()
    assert (found.name, found.bound, found.free_bytes()) == ("the GPU", "free", 5 * 2**30)
    assert driver.num_contexts == 0
    for function, code, expected in (
        ("cuDevicePrimaryCtxRetain", 2, 0),  # no memory for a context is no memory for anything
        ("cuDevicePrimaryCtxRetain", 46, None),
        ("cuCtxPushCurrent_v2", 1, None),
        ("cuMemGetInfo_v2", 1, None),
    ):
        driver.fails[function] = code
        assert nvidia.free_bytes() == expected, function
        assert driver.num_contexts == 0, function


def test_a_gpu_that_shares_the_machines_memory_has_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "_load", lambda: FakeDriver(["Orin"], is_integrated=True))
    assert nvidia.query().gpus[0].is_integrated
    assert nvidia.gpu_memory() is memory.HOST
    monkeypatch.setattr(memory, "available_bytes", lambda: 17)
    assert memory.HOST.free_bytes() == 17


@pytest.mark.parametrize("library", [None, FakeDriver([], 100), FakeDriver([])], ids=["none", "broken", "no-gpu"])
def test_without_a_gpu_nothing_is_known_to_be_free(monkeypatch: pytest.MonkeyPatch, library: FakeDriver | None) -> None:
    def load() -> FakeDriver:
        if library is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return library

    monkeypatch.setattr(nvidia, "_load", load)
    assert nvidia.gpu_memory().free_bytes() is None


@pytest.mark.gpu
@pytest.mark.skipif(not nvidia.query().gpus, reason="needs an NVIDIA GPU")
def test_on_a_gpu_what_is_free_is_less_than_what_there_is() -> None:
    free, gpu = nvidia.free_bytes(), nvidia.query().gpus[0]
    assert free is not None
    assert 0 < free <= gpu.memory_bytes
