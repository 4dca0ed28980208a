"""The machine's own limits: measured with the installed engines, and never guessed."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from blip3v.bench import gemm_rate, limits, memory_bandwidth
from blip3v.bench.limits import GemmRate, Limits, measure_limits
from blip3v.errors import BackendError


def rate(backend: str, operations_per_s: float | None, problem: str | None = None) -> GemmRate:
    return GemmRate(backend=backend, kind="float32", operations_per_s=operations_per_s, problem=problem)


def some_limits(*rates: GemmRate) -> Limits:
    return Limits(threads=2, read_bytes_per_s=1e9, read_problem=None, cache_bytes=None, gemm=rates)


def test_the_fastest_engine_is_the_limit() -> None:
    found = some_limits(rate("onnxruntime", 1e9), rate("openvino", 2e9), rate("other", None, "broken"))
    assert found.fastest("float32") == rate("openvino", 2e9)
    assert found.fastest("int8") is None
    assert Limits.from_dict(json.loads(json.dumps(dataclasses.asdict(found)))) == found


@pytest.mark.parametrize("engine", list(gemm_rate.ENGINES))
def test_an_engine_has_a_rate(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(engine)
    monkeypatch.setattr(gemm_rate, "_MEASURE_S", 0.0)
    assert gemm_rate.gemm_rate(engine, "float32", 1) > 1e8


def test_memory_is_read_by_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bandwidth, "_size_bytes", lambda: 2**24 + 12345)
    assert memory_bandwidth.read_bandwidth(3) > 1e8


def test_memory_that_fits_into_the_caches_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_bandwidth, "last_level_cache_bytes", lambda: 2**28)
    monkeypatch.setattr("blip3v.runtime.memory.available_bytes", lambda: 2**29)
    with pytest.raises(BackendError, match=r"256 MiB.*cache has 256 MiB; free some memory"):
        memory_bandwidth.read_bandwidth(1)


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    assert memory_bandwidth.last_level_cache_bytes(tmp_path) is None
    for index, size in enumerate(("48K", "2048K", "32M")):
        folder = tmp_path / f"sys/devices/system/cpu/cpu0/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "size").write_text(size + "\n")
    assert memory_bandwidth.last_level_cache_bytes(tmp_path) == 32 * 2**20


def test_what_cannot_be_measured_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = (sys.executable, "-c", "raise SystemExit('no such instruction')")
    monkeypatch.setattr(limits, "_COMMAND", broken)
    found = measure_limits(1)
    assert (found.read_bytes_per_s, found.gemm, found.threads) == (None, (), 1)
    assert "no such instruction" in (found.read_problem or "")


def test_an_engine_that_fails_is_a_problem_and_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> float:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(limits, "gemm_rate", fail)
    found = limits._rate("onnxruntime", "int8", None)
    assert (found.operations_per_s, found.problem) == (None, "RuntimeError: first line")


def test_the_process_measures_all_installed_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    code = (
        "import sys; from blip3v.bench import gemm_rate, limits, memory_bandwidth\n"
        "memory_bandwidth._size_bytes = lambda: 2**22\n"
        "limits.gemm_rate = lambda *of: 1e9\n"
        "limits.main(); assert 'torch' not in sys.modules"
    )
    monkeypatch.setattr(limits, "_COMMAND", (sys.executable, "-c", code))
    found = measure_limits(1)
    assert found.read_problem is None
    assert (found.read_bytes_per_s or 0) > 1e8
    assert {one.kind for one in found.gemm} == {"float32", "int8", "int8-block", "int4-block"}
    assert "onnxruntime" in {one.backend for one in found.gemm}
