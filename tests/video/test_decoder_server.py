"""The fork server: whatever happens to it or to its processes, a load ends as without it, and nothing is left."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from blip3v.errors import CorruptVideoError, UsageError, VideoError, VideoTimeoutError, VideoTooLargeError
from blip3v.video import Clip, SpareDecoder, VideoLimits, decoder_process, decoder_server, load_clip
from blip3v.video.interruption import Interrupting

pytestmark = pytest.mark.skipif(not decoder_server.can_serve(), reason="no fork server on this system")


DEFAULT = VideoLimits()


class Serving:
    """A fork server, and loads that do something while their process runs."""

    def __init__(self, video: Path, spare: SpareDecoder) -> None:
        before = _children()
        self.video, self.spare = video, spare
        self.load(), self.load()
        (pid,) = _children() - before
        self.server = psutil.Process(pid)

    def load(self, during: Callable[[], object] = lambda: None, limits: VideoLimits = DEFAULT) -> Clip:
        """``during`` is called once the process was started, and before it is asked."""
        return load_clip(self.video, num_frames=4, spare=self.spare, interrupting=_doing(during), limits=limits)

    def processes(self) -> list[psutil.Process]:
        """Those that decode files."""
        return self.server.children()


def _doing(during: Callable[[], object]) -> Interrupting:
    @contextmanager
    def interrupting(interrupt: Callable[[], None]) -> Iterator[None]:
        during()
        yield

    def call(interrupt: Callable[[], None]) -> AbstractContextManager[None]:
        return interrupting(interrupt)

    return call


def _children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
def serving(plain: Path) -> Iterator[Serving]:
    before = _children()
    with SpareDecoder() as spare:
        yield Serving(plain, spare)
    assert _children() == before


@pytest.fixture
def none_started(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Fills with what is started without the server."""
    started: list[object] = []
    start = decoder_process.start_decoder

    def listening(**options: int | None) -> decoder_process.StartedDecoder:
        started.append(options)
        return start(**options)  # type: ignore[arg-type]

    monkeypatch.setattr(decoder_process, "start_decoder", listening)
    return started


def test_every_file_gets_a_process_of_its_own(serving: Serving, none_started: list[object]) -> None:
    seen: list[int] = []
    clips = [serving.load(lambda: seen.extend(process.pid for process in serving.processes())) for _ in range(3)]
    assert (len(set(seen)), len(seen), none_started) == (3, 3, [])
    assert serving.processes() == []
    cold = load_clip(serving.video, num_frames=4)
    for clip in clips:
        np.testing.assert_array_equal(np.stack(clip.frames), np.stack(cold.frames))
        assert clip.sampled == cold.sampled


def test_a_process_has_nothing_open_but_its_file(serving: Serving) -> None:
    """Neither the server's socket nor what belongs to a load that runs at the same time."""
    opened: list[str] = []

    def look() -> None:
        process = serving.processes()[-1]
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            links = [os.readlink(link) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
            if not any(link.startswith(("socket:", "anon_inode:")) for link in links):
                opened.extend(links)
                return
            time.sleep(0.01)

    serving.load(lambda: serving.load(look))
    assert str(serving.video) in opened
    assert {link.partition(":")[0] for link in opened} == {"pipe", str(serving.video)}


def test_it_has_one_thread_and_a_session_of_its_own(serving: Serving) -> None:
    """A fork copies the lock that another thread holds, and Ctrl-C goes to a whole session."""
    sessions: list[int] = []
    serving.load(lambda: sessions.extend(os.getsid(process.pid) for process in [serving.server, *serving.processes()]))
    assert serving.server.num_threads() == 1
    assert os.getsid(0) not in sessions


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        pytest.param(signal.SIGSEGV, CorruptVideoError, "crashed with SIGSEGV", id="segv"),
        pytest.param(signal.SIGXCPU, VideoTimeoutError, "timeout_s", id="cpu-time"),
        pytest.param(signal.SIGKILL, VideoTooLargeError, "memory runs out", id="killed"),
    ],
)
def test_a_process_that_dies(
    serving: Serving, number: signal.Signals, kind: type[VideoError], message: str, none_started: list[object]
) -> None:
    with pytest.raises(kind, match=message):
        serving.load(lambda: serving.processes()[0].send_signal(number))
    assert len(serving.load().frames) == 4
    assert (serving.server.is_running(), none_started) == (True, [])


def test_a_process_that_hangs_is_ended_in_time(serving: Serving, none_started: list[object]) -> None:
    with pytest.raises(VideoTimeoutError, match=r"longer than 0.2 s, the limit \(timeout_s\)"):
        serving.load(lambda: serving.processes()[0].suspend(), limits=VideoLimits(timeout_s=0.2))
    assert (serving.processes(), none_started) == ([], [])


def test_a_server_that_dies_takes_no_load_along(serving: Serving, none_started: list[object]) -> None:
    assert len(serving.load(serving.server.kill).frames) == 4
    assert none_started == []
    assert len(serving.load().frames) == 4
    assert len(none_started) == 1
    assert len(serving.load().frames) == 4
    assert len(none_started) == 1, "another server was started"


def test_a_process_that_dies_after_its_server_is_an_error(serving: Serving) -> None:
    def kill_both() -> None:
        (process,) = serving.processes()
        serving.server.kill()
        process.kill()

    with pytest.raises(VideoTooLargeError, match="killed from outside"):
        serving.load(kill_both)


def test_a_server_that_hangs_is_left(
    serving: Serving, monkeypatch: pytest.MonkeyPatch, none_started: list[object]
) -> None:
    monkeypatch.setattr(decoder_server, "_MOST_FORK_S", 0.1)
    serving.server.suspend()
    assert len(serving.load().frames) == 4
    assert len(none_started) == 1
    assert not serving.server.is_running()


def test_one_that_is_closed_lets_its_loads_end(serving: Serving, none_started: list[object]) -> None:
    assert len(serving.load(serving.spare.close).frames) == 4
    assert none_started == []
    assert not serving.server.is_running()


def test_many_threads_at_once(serving: Serving, none_started: list[object]) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    together = threading.Barrier(8)
    results: list[list[int]] = []

    def load() -> None:
        clip = serving.load(lambda: together.wait(30))
        results.append([sampled.index for sampled in clip.sampled])

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[2, 20, 39, 58]] * 8
    assert (serving.processes(), none_started) == ([], [])
    assert len(os.listdir("/proc/self/fd")) == num_open


@pytest.mark.parametrize("program", ["exit 0", "exec sleep 60"], ids=["ends", "never-answers"])
def test_a_python_that_is_another_program(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(decoder_server, "_MOST_FORK_S", 0.1)
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{program}\n")
    path.chmod(0o755)
    monkeypatch.setenv("BLIP3V_PYTHON", str(path))
    with SpareDecoder() as spare:
        for _ in range(4):
            with pytest.raises((UsageError, VideoTimeoutError), match="BLIP3V_PYTHON"):
                load_clip(plain, num_frames=2, spare=spare, limits=VideoLimits(timeout_s=0.3))


INTERRUPTED = """
import sys, time
from contextlib import contextmanager
from blip3v.video import SpareDecoder, load_clip

@contextmanager
def waiting(interrupt):
    print("waiting", flush=True)
    time.sleep(60)
    yield

with SpareDecoder() as spare:
    def load(**options):
        return load_clip({path!r}, num_frames=2, spare=spare, **options)
    load(), load()
    server = spare._slot._ahead._process
    try:
        load(interrupting=waiting)
    except KeyboardInterrupt:
        load()
        assert spare._slot._ahead._process is server and server.poll() is None
        print("interrupted", flush=True)
"""


def test_ctrl_c_ends_the_load_and_not_the_server(plain: Path, tmp_path: Path) -> None:
    script = tmp_path / "interrupted.py"
    script.write_text(INTERRUPTED.format(path=str(plain)))
    pipe = subprocess.PIPE
    command = [sys.executable, str(script)]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (0, "interrupted\n", "")
