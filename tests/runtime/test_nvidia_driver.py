"""What the NVIDIA driver says. ``FakeLibrary`` stands for the driver's library, which this machine may not have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blip3v.runtime import nvidia
from blip3v.runtime.nvidia import Driver, Gpu


class FakeLibrary:
    """The calls of libcuda that are used, with their arguments: pointers to write to, sizes, numbers of devices."""

    def __init__(self, names: list[str], code: int = 0) -> None:
        self.names = names
        self.code = code

    def cuInit(self, flags: int) -> int:  # noqa: N802
        return self.code

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13020
        return 0

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        text._obj.value = {100: b"no CUDA-capable device is detected"}.get(code)
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.names)
        return 0

    def cuDeviceGet(self, device: Any, index: int) -> int:  # noqa: N802
        device._obj.value = index + 10  # a handle is not its index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device: int) -> int:  # noqa: N802
        name.value = self.names[device - 10].encode()[: size - 1]
        return 0

    def cuDeviceTotalMem_v2(self, num_bytes: Any, device: int) -> int:  # noqa: N802
        num_bytes._obj.value = (device - 9) * 2**33
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: int) -> int:  # noqa: N802
        value._obj.value = {75: 8, 76: 6 + device - 10}[attribute]
        return 0


def test_every_gpu_is_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvidia, "_load", lambda: FakeLibrary(["NVIDIA A", "NVIDIA B"]))
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
        (FakeLibrary([], 100), "the NVIDIA driver says: no CUDA-capable device is detected"),
        (FakeLibrary([], 999), "the NVIDIA driver says: error 999"),
        (FakeLibrary([]), "the NVIDIA driver has no GPU"),
    ],
)
def test_without_a_gpu_the_driver_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: FakeLibrary, problem: str
) -> None:
    monkeypatch.setattr(nvidia, "_load", lambda: library)
    assert nvidia.query(tmp_path) == Driver(version=None, cuda="13.2", gpus=(), problem=problem)


def test_this_machine_has_gpus_or_a_reason() -> None:
    found = nvidia.query()
    assert bool(found.gpus) != bool(found.problem)
    if found.cuda is None:
        assert found.problem.startswith("there is no NVIDIA driver (")
