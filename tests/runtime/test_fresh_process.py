"""What the runtime loads, and that it works from a plain script: each in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CLIP = Path(__file__).parents[2] / "examples" / "turn.mp4"
_HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnx_ir", "accelerate")


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_opening_and_asking_load_no_training_framework(bundle_path: Path) -> None:
    code = (
        "import sys; from blip3v.runtime import VideoLM\n"
        "lm = VideoLM.open(sys.argv[1], threads=1)\n"
        "assert lm.ask(sys.argv[2], 'Which way?').usage.num_new_tokens > 0\n"
        f"print([name for name in {_HEAVY!r} if name in sys.modules])"
    )
    assert _run(code, str(bundle_path), str(CLIP)) == "[]"


def test_importing_the_runtime_loads_no_engine_and_no_video_library() -> None:
    code = "import sys; import blip3v.runtime; print([m for m in ('onnxruntime', 'av', 'torch') if m in sys.modules])"
    assert _run(code) == "[]"


def test_frames_in_memory_are_answered_about_where_pyav_is_not_installed(bundle_path: Path) -> None:
    """Rendering films and measuring need it no more than the runtime does."""
    code = (
        "import sys; sys.modules['av'] = None\n"
        "import numpy as np, blip3v.bench, blip3v.data\n"
        "from blip3v.runtime import VideoLM\n"
        "lm = VideoLM.open(sys.argv[1], threads=1)\n"
        "print(len(lm.ask(np.zeros((6, 20, 30, 3), np.uint8), 'Which way?').frames))"
    )
    assert _run(code, str(bundle_path)) == "4"


@pytest.mark.slow
def test_openvino_opens_both_graphs_at_once_however_threads_take_turns(bundle_path: Path) -> None:
    """Its bindings load numpy at the first use of a dtype: two threads that did it at once waited for ever."""
    code = (
        "import faulthandler, sys; faulthandler.dump_traceback_later(60, exit=True); sys.setswitchinterval(1e-6)\n"
        "from blip3v.runtime import VideoLM\n"
        "with VideoLM.open(sys.argv[1], backend='openvino', threads=1): print('open')"
    )
    for _ in range(20):  # one in five hung, or fewer
        assert _run(code, str(bundle_path)) == "open"


def test_a_script_without_a_main_guard_works(bundle_path: Path, tmp_path: Path) -> None:
    script = tmp_path / "plain.py"
    script.write_text(
        "import sys\n"
        "from blip3v.runtime import VideoLM\n"
        "with VideoLM.open(sys.argv[1]) as lm:\n"
        "    answer = lm.ask(sys.argv[2], 'Which way does the red circle turn?')\n"
        "    print(len(answer.frames), answer.finish_reason)\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), str(bundle_path), str(CLIP)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "4"
    assert done.stderr == ""


_MANY_REQUESTS = """
import os, sys
from pathlib import Path
import numpy as np
from blip3v.runtime import GenerationOptions, VideoLM

film = np.random.default_rng(2).integers(0, 256, (9, 20, 30, 3), np.uint8)

def requests(lm, count):
    for number in range(count):
        question = "why " * (1 + number % 37)
        options = GenerationOptions(max_new_tokens=1 + number % 7, temperature=1.0, seed=number)
        if number % 10 == 0:
            with lm.chat(film) as chat:
                chat.ask(question, options=options)
        elif number % 10 == 1:
            next(lm.stream(film, question, options=options))
        elif number % 10 == 2:
            lm.ask_batch([(film, question), (film, "why")], options=options)
        else:
            lm.ask(film, question, options=options)

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

with VideoLM.open(sys.argv[1], threads=1) as lm:
    requests(lm, 150)
    before = resident()
    requests(lm, 500)
    print(resident() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_five_hundred_requests_do_not_grow_the_memory(bundle_path: Path) -> None:
    """Prompts of many lengths, encoding, sampling, batches, chats and broken-off streams.

    In a process of its own: in one that other tests have filled, a leak would hide in memory that they gave back.
    """
    assert int(_run(_MANY_REQUESTS, str(bundle_path))) < 4 * 2**20
