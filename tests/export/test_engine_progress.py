"""What TensorRT calls back while it builds; the base classes are stand-ins, since only their names matter here."""

from __future__ import annotations

import errno
import hashlib
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from blip3v.export.engine_progress import EngineFile, progress_monitor, run_interruptibly, stream_writer

FAKE = types.SimpleNamespace(IProgressMonitor=object, IStreamWriter=object)  # of a TensorRT package


def test_the_position_counts_the_steps_of_inner_phases() -> None:
    shown: list[int] = []

    def show(stage: str, done: int = 0, total: int = 0) -> None:
        shown.append(done)

    monitor = progress_monitor(FAKE, "build", show, threading.Event())
    monitor.phase_start("outer", None, 2)
    monitor.phase_start("inner", "outer", 4)
    assert monitor.step_complete("inner", 0)
    assert monitor.step_complete("inner", 1)
    monitor.phase_finish("inner")
    assert monitor.step_complete("outer", 0)
    monitor.phase_start("inner", "outer", 1)
    assert monitor.step_complete("inner", 0)
    monitor.phase_finish("inner")
    assert monitor.step_complete("unknown", 3)
    assert shown == [125, 250, 500, 1000]


def test_a_step_after_the_stop_ends_the_build() -> None:
    stop = threading.Event()
    monitor = progress_monitor(FAKE, "build", lambda stage, done=0, total=0: None, stop)
    monitor.phase_start("outer", None, 2)
    assert monitor.step_complete("outer", 0)
    stop.set()
    assert not monitor.step_complete("outer", 1)


def test_an_engine_is_hashed_while_it_is_written(tmp_path: Path) -> None:
    with EngineFile(tmp_path / "a.engine") as file:
        writer = stream_writer(FAKE, file)
        assert [writer.write(piece) for piece in (b"one", b"", b"three")] == [3, 0, 5]
    file.check()
    assert (tmp_path / "a.engine").read_bytes() == b"onethree"
    assert (file.size_bytes, file.sha256) == (8, hashlib.sha256(b"onethree").hexdigest())


def test_a_full_disk_ends_the_build_and_is_told_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception cannot pass through TensorRT."""

    def full(data: Any) -> int:
        raise OSError(errno.ENOSPC, "no space")

    with EngineFile(tmp_path / "a.engine") as file:
        writer = stream_writer(FAKE, file)
        assert writer.write(b"one") == 3
        real, file._file = file._file, types.SimpleNamespace(write=full, close=lambda: None)  # type: ignore[assignment]
        assert writer.write(b"two") == 0
        file._file = real
        assert writer.write(b"three") == 0
    with pytest.raises(OSError, match="no space"):
        file.check()


def test_work_in_the_thread_gives_its_result_or_its_error() -> None:
    assert run_interruptibly(lambda: 7, threading.Event()) == 7
    with pytest.raises(ZeroDivisionError):
        run_interruptibly(lambda: 1 // 0, threading.Event())
