"""What is started ahead of a load: never left behind, and each file within its limits in a process of its own.

Most tests are about both kinds: the fork server, and the decoder process of the next load.
"""

import errno
import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
from film_files import Film, read_number
from PIL import Image

from blip3v.errors import CorruptVideoError, UsageError, VideoError, VideoTimeoutError, VideoTooLargeError
from blip3v.video import SpareDecoder, VideoLimits, decoder_process, decoder_server, load_clip, spare_decoder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no descriptor can be sent there")

SERVER, PROCESS = "fork-server", "process"


@pytest.fixture(autouse=True, params=[SERVER, PROCESS])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What is started ahead."""
    if request.param == SERVER and not decoder_server.can_serve():
        pytest.skip("no fork server on this system")
    if request.param == PROCESS:
        monkeypatch.setattr(decoder_server, "can_serve", lambda: False)
    found: str = request.param
    return found


of_server = pytest.mark.parametrize("kind", [SERVER], indirect=True)
of_process = pytest.mark.parametrize("kind", [PROCESS], indirect=True)


@pytest.fixture(autouse=True)
def others() -> set[int]:
    """Processes of other tests."""
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
def running(others: set[int]) -> "Running":
    return Running(others)


class Running:
    """Decoder processes of this test."""

    def __init__(self, others: set[int]) -> None:
        self._others = others

    def __call__(self) -> list[int]:
        found = psutil.Process().children(recursive=True)
        return [process.pid for process in found if process.pid not in self._others]


@pytest.fixture
def spare() -> Iterator[SpareDecoder]:
    with SpareDecoder() as spare:
        yield spare


@pytest.fixture
def ready(spare: SpareDecoder, plain: Path) -> SpareDecoder:
    """It holds a process."""
    for _ in range(2):
        load_clip(plain, num_frames=1, spare=spare)
    return spare


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bool]]:
    """Of each process that is started, whether it is ahead."""
    started: list[bool] = []
    start = decoder_process.start_decoder

    def listening(*, ahead: bool = False, file: int | None = None) -> decoder_process.StartedDecoder:
        started.append(ahead)
        return start(ahead=ahead, file=file)

    with monkeypatch.context() as patch:
        patch.setattr(decoder_process, "start_decoder", listening)
        patch.setattr(spare_decoder, "start_decoder", listening)
        yield started


@of_process
def test_every_file_gets_a_process_of_its_own(
    plain: Path, spare: SpareDecoder, monkeypatch: pytest.MonkeyPatch, running: Running
) -> None:
    """The second load shows that more may come, and starts the one for the third."""
    seen: list[list[int]] = []
    with counted(monkeypatch) as started:
        for _ in range(5):
            load_clip(plain, num_frames=2, spare=spare)
            seen.append(running())
    assert started == [False, False, True, True, True, True]
    assert [len(processes) for processes in seen] == [0, 1, 1, 1, 1]
    assert len({processes[0] for processes in seen[1:]}) == 4
    spare.close()
    assert running() == []


def test_the_frames_are_the_same(plain: Path, ready: SpareDecoder) -> None:
    cold = load_clip(plain, num_frames=8)
    for video in (plain, plain.read_bytes()):
        warm = load_clip(video, num_frames=8, spare=ready)
        np.testing.assert_array_equal(np.stack(warm.frames), np.stack(cold.frames))
        assert warm.sampled == cold.sampled


def test_an_image_file_too(tmp_path: Path, ready: SpareDecoder) -> None:
    Image.new("RGB", (8, 6), (9, 8, 7)).save(tmp_path / "one.png")
    assert load_clip(tmp_path / "one.png", num_frames=1, spare=ready).frames[0][0, 0].tolist() == [9, 8, 7]


def test_its_limits_are_those_of_the_load(film: Film, ready: SpareDecoder, plain: Path, running: Running) -> None:
    large = film("5k-libx264.mp4", 2, size=(5120, 2880), options={"preset": "ultrafast"})
    with pytest.raises(VideoTooLargeError, match="max_memory_bytes"):
        load_clip(large, num_frames=2, limits=VideoLimits(max_memory_bytes=200 * 2**20), spare=ready)
    slow = film("4k.mp4", 16, size=(3840, 2160), options={"preset": "ultrafast"})  # many times what a timer may be late
    with pytest.raises(VideoTimeoutError, match=r"timeout_s"):
        load_clip(slow, num_frames=16, limits=VideoLimits(timeout_s=0.001), spare=ready)
    with pytest.raises(VideoTooLargeError, match="max_frames_walked"):
        load_clip(plain, num_frames=2, limits=VideoLimits(max_frames_walked=3), spare=ready)
    least = VideoLimits(max_memory_bytes=192 * 2**20)
    assert len(load_clip(plain, num_frames=2, limits=least, spare=ready).frames) == 2
    assert len(running()) == 1


def test_a_load_that_is_interrupted_or_fails_leaves_the_next_one(
    plain: Path, ready: SpareDecoder, running: Running
) -> None:
    with pytest.raises(VideoError):
        load_clip(b"not a video", num_frames=2, spare=ready)

    @contextmanager
    def at_once(interrupt: object) -> Iterator[None]:
        assert callable(interrupt)
        interrupt()
        yield

    with pytest.raises(VideoError):
        load_clip(plain, num_frames=2, spare=ready, interrupting=at_once)
    assert len(load_clip(plain, num_frames=2, spare=ready).frames) == 2
    assert len(running()) == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGALRM])
def test_one_that_died_waiting_is_not_used(
    plain: Path, ready: SpareDecoder, running: Running, number: signal.Signals
) -> None:
    (process,) = running()
    os.kill(process, number)
    deadline = time.monotonic() + 10
    while psutil.Process(process).status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(load_clip(plain, num_frames=2, spare=ready).frames) == 2
    assert process not in running()


@of_process
def test_one_that_is_old_is_not_used(
    plain: Path, ready: SpareDecoder, running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be about to end by itself."""
    before = running()
    monkeypatch.setattr(spare_decoder, "_MOST_AGE_S", 0.0)
    with counted(monkeypatch) as started:
        load_clip(plain, num_frames=2, spare=ready)
    assert started == [False, True]
    assert not set(before) & set(running())


def test_one_of_another_environment_is_not_used(
    plain: Path, ready: SpareDecoder, monkeypatch: pytest.MonkeyPatch, running: Running
) -> None:
    """``BLIP3V_PYTHON`` and the import path hold at the time of the load, as without a process ahead."""
    monkeypatch.setenv("BLIP3V_PYTHON", sys.executable)
    before = running()
    load_clip(plain, num_frames=2, spare=ready)
    assert len(running()) == 1
    assert running() != before
    monkeypatch.setattr(decoder_process, "_user", lambda: ("somebody", "else"))
    before = running()
    load_clip(plain, num_frames=2, spare=ready)
    assert running() != before
    monkeypatch.setenv("BLIP3V_PYTHON", "/no/such/python")
    with pytest.raises(UsageError, match="is not a program"):
        load_clip(plain, num_frames=2, spare=ready)


def test_one_that_cannot_be_started_is_no_error(
    plain: Path, spare: SpareDecoder, monkeypatch: pytest.MonkeyPatch, running: Running
) -> None:
    def fail(*kind: int) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socketpair", fail)
    for _ in range(3):
        assert len(load_clip(plain, num_frames=2, spare=spare).frames) == 2
    assert running() == []


@of_process
def test_it_takes_the_blame_as_any_decoder(plain: Path, spare: SpareDecoder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash that the video caused."""
    crash = (
        "import json, os, sys\nfrom blip3v.video_decoder.greeting import greeting\n"
        "print(json.dumps(greeting()), flush=True); sys.stdin.readline(); os.kill(os.getpid(), 11)"
    )
    monkeypatch.setattr(decoder_process, "_command", lambda: (sys.executable, "-c", crash))
    for _ in range(3):
        with pytest.raises(CorruptVideoError, match="crashed with SIGSEGV"):
            load_clip(plain, num_frames=2, spare=spare)


def test_nothing_is_left_after_close(plain: Path, running: Running) -> None:
    load_clip(plain, num_frames=1)
    num_open = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with SpareDecoder() as spare:
            for _ in range(3):
                load_clip(plain, num_frames=1, spare=spare)
            assert len(running()) == 1
        assert running() == []
        assert len(load_clip(plain, num_frames=1, spare=spare).frames) == 1
        assert running() == []
    assert len(os.listdir("/proc/self/fd")) == num_open


def test_nothing_is_left_by_one_that_nobody_closed(plain: Path, running: Running) -> None:
    spare = SpareDecoder()
    for _ in range(2):
        load_clip(plain, num_frames=1, spare=spare)
    assert len(running()) == 1
    del spare
    gc.collect()
    assert running() == []


def test_several_threads_share_one(plain: Path, ready: SpareDecoder, running: Running) -> None:
    results: list[list[int]] = []

    def load() -> None:
        for _ in range(3):
            clip = load_clip(plain, num_frames=4, spare=ready)
            results.append([read_number(frame) for frame in clip.frames])

    threads = [threading.Thread(target=load) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[2, 20, 39, 58]] * 9
    assert len(running()) <= 1


SCRIPT = """
import os, signal, sys
from blip3v.video import SpareDecoder, decoder_server, load_clip
if {kind!r} == "process":
    decoder_server.can_serve = lambda: False
spare = SpareDecoder()
def load():
    return len(load_clip({path!r}, num_frames=2, spare=spare).frames)
load(), load()
def ahead():
    return spare._slot._ahead._process
process = ahead().pid
print(process, flush=True)
{then}
"""
FORK = """
child = os.fork()
if child == 0:
    assert spare._slot._ahead is not None
    load(), load(), load()
    assert ahead().pid != process
    sys.exit(0)  # with the exit handlers of the parent
assert os.waitpid(child, 0)[1] == 0
assert ahead().pid == process and ahead().poll() is None
load()
"""


@pytest.mark.parametrize(
    ("then", "code"),
    [
        pytest.param("pass", 0, id="ends"),
        pytest.param("raise SystemExit(3)", 3, id="exits"),
        pytest.param("os._exit(4)", 4, id="exits-at-once"),
        pytest.param("os.kill(os.getpid(), signal.SIGKILL)", -9, id="is-killed"),
        pytest.param(FORK, 0, id="forks"),
    ],
)
def test_it_ends_with_its_caller(plain: Path, tmp_path: Path, kind: str, then: str, code: int) -> None:
    script = tmp_path / "caller.py"
    script.write_text(SCRIPT.format(path=str(plain), kind=kind, then=then))
    quiet = os.environ | {"PYTHONWARNINGS": "ignore"}  # later Pythons warn of a fork, since numpy has threads
    command = [sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=quiet)
    assert (done.returncode, done.stderr) == (code, "")
    process = int(done.stdout)
    deadline = time.monotonic() + 10
    while psutil.pid_exists(process) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not psutil.pid_exists(process)


@pytest.mark.parametrize(
    ("kind", "module", "code"),
    [(SERVER, "fork_server", 0), (PROCESS, "__main__", -signal.SIGALRM)],
    indirect=["kind"],
    ids=[SERVER, PROCESS],
)
def test_one_that_nobody_asks_ends(module: str, code: int) -> None:
    """Also if its caller hangs, or another process holds its pipes."""
    ours, its = socket.socketpair(
        socket.AF_UNIX, socket.SOCK_SEQPACKET if module == "fork_server" else socket.SOCK_STREAM
    )
    program = (
        "from blip3v.video_decoder import ahead\nahead.IDLE_S = 1\n"
        f"from blip3v.video_decoder.{module} import main\nmain()"
    )
    command = [sys.executable, "-c", program, str(its.fileno())]
    with ours, its, subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(its.fileno(),)) as process:
        assert process.wait(timeout=30) == code
