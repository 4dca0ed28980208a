"""The decoder process: limited, never left running, and unable to take its caller down."""

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from film_files import Film
from PIL import Image

from blip3v.errors import CorruptVideoError, UsageError, VideoError, VideoTimeoutError, VideoTooLargeError
from blip3v.video import VideoLimits, decoder_process, load_clip
from blip3v.video.interpreter import find_python
from blip3v.video_decoder.greeting import greeting

# What the decoder says first.
GREET = f"print('{json.dumps(greeting())}', flush=True); "


OTHERS: set[int] = set()


@pytest.fixture(autouse=True)
def others() -> None:
    """Processes that other tests keep, such as the spare decoder of a model that is open for the session."""
    OTHERS.clear()
    OTHERS.update(process.pid for process in psutil.Process().children(recursive=True))


def children() -> list[psutil.Process]:
    """Processes that the test has started."""
    return [process for process in psutil.Process().children(recursive=True) if process.pid not in OTHERS]


def pretend(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Runs ``program`` in place of the decoder."""
    monkeypatch.setattr(decoder_process, "_command", lambda: (sys.executable, "-c", program))


def test_a_video_that_takes_too_long(film: Film) -> None:
    path = film("4k.mp4", 2, size=(3840, 2160), options={"preset": "ultrafast"})
    start = time.monotonic()
    with pytest.raises(VideoTimeoutError, match=r"longer than 0.05 s, the limit \(timeout_s\)"):
        load_clip(path, num_frames=2, limits=VideoLimits(timeout_s=0.05))
    assert time.monotonic() - start < 5
    assert children() == []


@pytest.mark.parametrize("timeout_s", [1e30, float("inf")], ids=str)
def test_limits_beyond_the_systems_are_none(plain: Path, timeout_s: float) -> None:
    """An OverflowError, in the thread that keeps the time and in the decoder, which blamed the file."""
    limits = VideoLimits(timeout_s=timeout_s, max_memory_bytes=2**70)
    assert len(load_clip(plain, num_frames=2, limits=limits).frames) == 2


def test_a_decoder_that_spins_is_stopped(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GREET + "\nwhile True: pass")
    with pytest.raises(VideoTimeoutError, match="timeout_s"):
        load_clip(plain, num_frames=2, limits=VideoLimits(timeout_s=0.3))
    assert children() == []


def test_a_decoder_that_reads_nothing_is_stopped(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GREET + "import time; time.sleep(60)")
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
    "after", ["", GREET + "sys.stdin.readline(); print('{\"wid', end='', flush=True);"], ids=["at-once", "late"]
)
def test_a_decoder_that_dies(
    plain: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[VideoError], message: str, after: str
) -> None:
    pretend(monkeypatch, f"import os, sys; {after} os.kill(os.getpid(), {int(number)})")
    with pytest.raises(kind, match=message):
        load_clip(plain, num_frames=2)
    assert children() == []


def test_a_decoder_that_cannot_run_says_why(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, GREET + "import no_such_module")
    with pytest.raises(VideoError, match=r"exit code 1 and without an answer.*No module named 'no_such_module'"):
        load_clip(plain, num_frames=2)
    pretend(monkeypatch, "import no_such_module")
    with pytest.raises(UsageError, match=r"cannot decode videos: .*No module named 'no_such_module'.*BLIP3V_PYTHON"):
        load_clip(plain, num_frames=2)


def test_a_machine_that_starts_no_process(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only this is about the machine, and setting another Python would not help."""

    def fail(*arguments: object, **options: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(VideoError, match=r"cannot be started .* temporarily unavailable") as caught:
        load_clip(plain, num_frames=2)
    assert "BLIP3V_PYTHON" not in str(caught.value)


@pytest.mark.parametrize("executable", [None, "", "/bin/true", "/no/such/python"], ids=repr)
def test_a_host_that_embeds_python(plain: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None) -> None:
    """The interpreter was ``sys.executable`` at import: a TypeError, a PermissionError, or the host program again."""
    monkeypatch.setattr(sys, "executable", executable)
    assert len(load_clip(plain, num_frames=2).frames) == 2
    monkeypatch.setattr(sys, "prefix", "/no/such/environment")
    with pytest.raises(UsageError, match=r"no Python to decode videos with: sys.executable is .*BLIP3V_PYTHON"):
        load_clip(plain, num_frames=2)


@pytest.mark.parametrize("name", ["PythonHost", "python-render-farm", "pythonservice.exe", "python3.11-config"])
def test_a_host_whose_name_begins_with_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A program that only has "python" in its name was taken for one, and started a second time."""
    host = tmp_path / name
    host.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(host))
    assert Path(find_python()).parent == Path(sys.prefix) / "bin"


@pytest.mark.parametrize(
    "name", ["python", "python3", "python3.13", "python3.13t", "python3.13td", "python3.11-dbg", "pypy3.10", "Python",
             "python.exe", "pythonw.exe", "python_d.exe", "python3.13t.exe"]
)  # fmt: skip
def test_every_name_of_a_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    python = tmp_path / name
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    assert find_python() == str(python)


def test_the_python_can_be_set_and_is_read_at_each_load(plain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = sys.executable
    monkeypatch.setattr(sys, "executable", "/bin/true")
    monkeypatch.setattr(sys, "prefix", "/no/such/environment")
    monkeypatch.setenv("BLIP3V_PYTHON", python)
    assert len(load_clip(plain, num_frames=2).frames) == 2
    monkeypatch.setenv("BLIP3V_PYTHON", "/no/such/python")
    with pytest.raises(UsageError, match="BLIP3V_PYTHON is '/no/such/python', which is not a program"):
        load_clip(plain, num_frames=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("exit 0", r"exit code 0 and without an answer \(no message\)", id="says-nothing"),
        pytest.param("echo usage: app FILE >&2; exit 2", r"exit code 2 .*\(usage: app FILE\)", id="refuses"),
        pytest.param("echo hello", "it answered b'hello", id="says-something-else"),
        pytest.param("cat /dev/zero", "it answered b'", id="says-it-without-end"),
        pytest.param(
            """echo '{"blip3v": "blip3v 0.0.1", "python": "cpython-399"}'""",
            r"it answered blip3v 0\.0\.1 on cpython-399, and blip3v \S+ on \S+ is needed",
            id="another-version",
        ),
        pytest.param(None, "cannot be started .*Exec format error", id="no-program"),
    ],
)
def test_a_program_that_is_another_one(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    """It was taken for a video that is damaged, or read until memory ran out."""
    program = tmp_path / "python"
    program.write_text("no program" if content is None else f"#!/bin/sh\n{content}\n")
    program.chmod(0o755)
    monkeypatch.setenv("BLIP3V_PYTHON", str(program))
    with pytest.raises(UsageError, match=f"{message}.*set the environment variable BLIP3V_PYTHON"):
        load_clip(plain, num_frames=2)
    assert children() == []


def test_a_program_that_never_answers(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a host's own window would: the video was to blame."""
    program = tmp_path / "python"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("BLIP3V_PYTHON", str(program))
    with pytest.raises(VideoTimeoutError, match=r"starting the decoder process .* longer than 0.3 s.*BLIP3V_PYTHON"):
        load_clip(plain, num_frames=2, limits=VideoLimits(timeout_s=0.3))
    assert children() == []


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
        f"decoder_process._command = lambda: (sys.executable, '-c', {hang!r})\n"
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a process its peak")
@pytest.mark.parametrize("kind", ["file", "pictures"])
def test_the_peak_is_that_of_the_process_alone(
    film: Film, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ask` left the decoder process out of its memory. getrusage would count the caller, which it is forked from."""
    monkeypatch.setattr(decoder_process.DecoderProcess, "_largest_bytes", 0)
    assert decoder_process.DecoderProcess.peak_rss_bytes() is None
    held = np.ones(2**29, np.uint8)  # of the caller
    video: Path | list[Path] = film("peak.mp4", 4, size=(1920, 1080), options={"preset": "ultrafast"})
    if kind == "pictures":
        video = [tmp_path / "large.png"]
        Image.new("RGB", (4000, 3000)).save(video[0])
    load_clip(video, num_frames=1)
    peak = decoder_process.DecoderProcess.peak_rss_bytes()
    assert peak is not None
    assert 30 * 2**20 < peak < len(held)
