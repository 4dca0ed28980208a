"""Which TensorRT is there: the real TensorRT-RTX where it is installed, and what is said where one is missing."""

from __future__ import annotations

import sys
import types

import pytest

from blip3v.bundle.engines import LIBRARY_NAMES
from blip3v.bundle.targets import TARGETS, is_tensorrt
from blip3v.errors import ProviderError, UsageError
from blip3v.extras import pip_line
from blip3v.runtime.tensorrt_library import (
    compute_capability,
    host_platform,
    is_installed,
    library_of,
    load_tensorrt,
)


def test_the_bindings_of_tensorrt_rtx_do_without_the_meta_package() -> None:
    if not is_installed("tensorrt_rtx"):
        pytest.skip("TensorRT-RTX is not installed")
    library = load_tensorrt("tensorrt_rtx")
    assert library.is_rtx
    assert library.name == f"TensorRT-RTX {library.version}"
    assert library.module.OnnxParser


@pytest.mark.parametrize("library", LIBRARY_NAMES)
def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch, library) -> None:
    for module in (library, f"{library}_bindings"):
        monkeypatch.setitem(sys.modules, module, None)
    assert not is_installed(library)
    with pytest.raises(ProviderError) as caught:
        load_tensorrt(library)
    extra = library.replace("_", "-")
    assert str(caught.value) == f"{LIBRARY_NAMES[library]} is not installed; run: {pip_line(extra)}"


def test_a_library_that_cannot_be_imported_is_not_a_missing_one(monkeypatch, tmp_path) -> None:
    for module in ("tensorrt", "tensorrt_bindings"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_installed("tensorrt")
    with pytest.raises(ProviderError, match=r"is installed and cannot be used \(libnvinfer\.so\.11: cannot open"):
        load_tensorrt("tensorrt")


def test_the_meta_package_comes_before_the_bindings(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, version in (("tensorrt", "11.4.0"), ("tensorrt_bindings", "10.3.0")):
        fake = types.ModuleType(module)
        fake.__spec__ = types.SimpleNamespace()  # type: ignore[assignment]
        fake.__version__ = version  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module, fake)
    assert load_tensorrt("tensorrt").name == "TensorRT 11.4.0"


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_for_tensorrt_has_a_library(target) -> None:
    if is_tensorrt(target):
        assert library_of(target) == ("tensorrt_rtx" if target == "tensorrt-rtx" else "tensorrt")
    else:
        with pytest.raises(UsageError, match="are not for TensorRT; allowed: tensorrt"):
            library_of(target)


def test_the_gpu_is_that_of_the_driver() -> None:
    capability = compute_capability()
    assert capability is None or float(capability) >= 3


def test_the_platform_is_a_system_and_a_processor() -> None:
    system, processor = host_platform().split("-")
    assert system == sys.platform.replace("win32", "windows")
    assert processor
