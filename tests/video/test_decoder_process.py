"""The decoder process: limited, never left running, and unable to take its caller down."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import pytest
from film_files import Film

from blip3v.errors import CorruptVideoError, UsageError, VideoError, VideoTimeoutError, VideoTooLargeError
from blip3v.video import VideoLimits, decoder_process, load_clip


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Runs ``program`` in place of the decoder."""
    monkeypatch.setattr(decoder_process, "_COMMAND", (sys.executable, "-c", program))


def test_a_video_that_takes_too_long(film: Film) -> None:
    path = film("4k.mp4", 2, size=(3840, 2160), options={"preset": "ultrafast"})
    start = time.monotonic()
    with pytest.raises(VideoTimeoutError, match=r"longer than 0.05 s, the limit \(timeout_s\)"):
        load_clip(path, num_frames=2, limits=VideoLimits(timeout_s=0.05))
    assert time.monotonic() - start < 5
    assert children() == []


def test_a_decoder_that_spins_is_stopped(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "while True: pass")
    with pytest.raises(VideoTimeoutError, match="timeout_s"):
        load_clip(plain, num_frames=2, limits=VideoLimits(timeout_s=0.3))
    assert children() == []


def test_a_decoder_that_reads_nothing_is_stopped(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "import time; time.sleep(60)")
    with pytest.raises(VideoTimeoutError, match="timeout_s"):
        load_clip(plain, num_frames=2, limits=VideoLimits(timeout_s=0.3))


@pytest.mark.parametrize("codec", ["libx264", "libvpx-vp9"])
def test_a_video_that_needs_too_much_memory(film: Film, codec: str) -> None:
    speed = {"preset": "ultrafast"} if codec == "libx264" else {"cpu-used": "8", "deadline": "realtime"}
    suffix = "mp4" if codec == "libx264" else "webm"
    # Large enough for a machine with one core too, on which the decoder takes less.
    path = film(f"5k-{codec}.{suffix}", 2, codec=codec, size=(5120, 2880), options=speed)
    with pytest.raises(VideoTooLargeError, match="max_memory_bytes"):
        load_clip(path, num_frames=2, limits=VideoLimits(max_memory_bytes=200 * 2**20))


def test_frames_that_would_fill_the_callers_memory_are_refused(film: Film) -> None:
    path = film("4k-9.mp4", 9, size=(3840, 2160), options={"preset": "ultrafast"})
    with pytest.raises(VideoTooLargeError, match="the sampled frames take 223948800 bytes"):
        load_clip(path, num_frames=9, rule="uniform", limits=VideoLimits(max_memory_bytes=200 * 2**20))


@pytest.mark.parametrize(
    ("number", "kind", "message"),
    [
        pytest.param(signal.SIGSEGV, CorruptVideoError, "crashed with SIGSEGV", id="segv"),
        pytest.param(signal.SIGABRT, CorruptVideoError, "crashed with SIGABRT", id="abort"),
        pytest.param(signal.SIGBUS, CorruptVideoError, "crashed with SIGBUS", id="bus"),
        pytest.param(signal.SIGXCPU, VideoTimeoutError, "timeout_s", id="cpu-time"),
        pytest.param(signal.SIGKILL, VideoTooLargeError, "memory runs out", id="killed"),
    ],
)
@pytest.mark.parametrize(
    "after", ["", "sys.stdin.readline(); print('{\"wid', end='', flush=True);"], ids=["at-once", "late"]
)
def test_a_decoder_that_dies(
    plain: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[VideoError], message: str, after: str
) -> None:
    pretend(monkeypatch, f"import os, sys; {after} os.kill(os.getpid(), {int(number)})")
    with pytest.raises(kind, match=message):
        load_clip(plain, num_frames=2)
    assert children() == []


def test_a_decoder_that_cannot_run_says_why(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, "import no_such_module")
    with pytest.raises(VideoError, match=r"exit code 1 and without an answer.*No module named 'no_such_module'"):
        load_clip(plain, num_frames=2)
    monkeypatch.setattr(decoder_process, "_COMMAND", ("/no/such/python",))
    with pytest.raises(VideoError, match="cannot be started"):
        load_clip(plain, num_frames=2)


def test_loads_leave_no_process_no_file_and_no_descriptor(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    data = plain.read_bytes()
    load_clip(data, num_frames=2)
    num_open = len(os.listdir("/proc/self/fd"))
    for turn in range(20):
        if turn % 4 == 3:
            with pytest.raises(VideoError):
                load_clip(b"not a video", num_frames=2)
        else:
            load_clip(data if turn % 2 else plain, num_frames=2)
    assert children() == []
    assert os.listdir(tmp_path) == []
    assert len(os.listdir("/proc/self/fd")) == num_open
    assert [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)] == []


def test_an_interrupted_load_leaves_nothing(plain: Path, tmp_path: Path) -> None:
    """Ctrl-C while the decoder hangs: the caller sees KeyboardInterrupt, and the decoder has ended."""
    script = tmp_path / "interrupted.py"
    started = tmp_path / "started"
    hang = f"import sys, time; sys.stdin.readline(); open({str(started)!r}, 'w').close(); time.sleep(60)"
    script.write_text(
        "import sys\n"
        "from blip3v.video import decoder_process, load_clip\n"
        f"decoder_process._COMMAND = (sys.executable, '-c', {hang!r})\n"
        "try:\n"
        f"    load_clip(open({str(plain)!r}, 'rb').read(), num_frames=2)\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted', flush=True)\n"
        "    sys.stdin.readline()\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    with process:
        assert process.stdout is not None
        caller = psutil.Process(process.pid)
        deadline = time.monotonic() + 30
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(caller.children()) == 1
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert caller.children() == []
        assert sorted(os.listdir(tmp_path)) == ["interrupted.py", "started"]
        process.communicate("\n")
    assert process.returncode == 0


def test_a_plain_script_without_a_main_guard(plain: Path, tmp_path: Path) -> None:
    """Also from a folder with a hostile av.py, which must not be imported instead of the real one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "av.py").write_text("raise SystemExit('the wrong av')\n")
    script = tmp_path / "script.py"
    script.write_text(
        f"from blip3v.video import load_clip\nclip = load_clip({str(plain)!r}, num_frames=4)\n"
        "print([sampled.index for sampled in clip.sampled])\n"
    )
    done = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path / "here", capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "[2, 20, 39, 58]\n", "")


def test_loads_from_several_threads(plain: Path) -> None:
    results: list[list[int]] = []

    def load() -> None:
        results.append([sampled.index for sampled in load_clip(plain, num_frames=4).sampled])

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[2, 20, 39, 58]] * 4


@pytest.mark.parametrize(
    ("module", "foreign"),
    [
        pytest.param("blip3v.video_decoder.__main__", {"numpy", "PIL", "torch", "av"}, id="decoder-before-its-limits"),
        pytest.param("blip3v.video_decoder.pick", {"numpy", "PIL", "torch"}, id="decoder"),
        pytest.param("blip3v.video", {"torch", "transformers", "onnx", "onnxruntime"}, id="package"),
    ],
)
def test_imports_stay_light(module: str, foreign: set[str]) -> None:
    program = f"import sys, {module}; print(*sorted({foreign!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"max_pixels": 0}, "max_pixels is 0"),
        ({"timeout_s": -1.0}, "timeout_s is -1"),
        ({"max_memory_bytes": 10}, "needs"),
        ({"max_bytes": "1 GB"}, "max_bytes is '1 GB'; a limit must be a number"),
        ({"max_pixels": 0.5}, "max_pixels is 0.5; a whole number"),
        ({"max_redirects": -1}, "max_redirects is -1"),
        ({"timeout_s": True}, "timeout_s is True"),
        ({"allow_url": 1}, "allow_url is 1; True or False"),
    ],
)
def test_limits_that_make_no_sense(limits: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        VideoLimits(**limits)
