"""What video_speed.py runs in processes of its own, which stay loaded and are asked in turns.

    python scripts/video_speed_samples.py SIDE VIDEO [BUNDLE]    # one sample for each line of its input

Each answer is a line of JSON: the seconds, the CPU seconds of the process and of those that it started, and a hash of
what came out, so that sides can be seen to agree. SIDE is a name in ``SIDES``.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import psutil

from blip3v.video import Clip, PreprocessorConfig, load_clip, preprocess, sample_indices

NUM_FRAMES = 8
CONFIG = PreprocessorConfig(image_size=384)
QUESTION = "Which way does the red circle turn?"

Sample = Callable[[], bytes]


def main(side: str, video: str, bundle: str | None = None) -> None:
    """Prepares the side, says that it is ready, then measures one sample for each line."""
    sample = SIDES[side](Path(video), Path(bundle or "."))
    print(json.dumps({"ready": side}), flush=True)
    for _ in sys.stdin:
        cpu_s, started_s = _cpu_s(), time.perf_counter()
        result = sample()
        seconds = time.perf_counter() - started_s
        sha256 = hashlib.sha256(result).hexdigest()
        print(json.dumps({"seconds": seconds, "cpu_s": _cpu_s() - cpu_s, "sha256": sha256}), flush=True)


def _cpu_s() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    running = [child.cpu_times() for child in psutil.Process().children()]  # what a fork server waited for is its own
    children_s = sum(one.user + one.system + one.children_user + one.children_system for one in running)
    return children_s + sum(one.ru_utime + one.ru_stime for one in used)


# --- frames of a file, resized --------------------------------------------------------------------------------------


def loop(video: Path, bundle: Path) -> Sample:
    """The straightforward loop: open, decode one frame after another with PyAV's usual threads, keep the wanted."""

    def sample() -> bytes:
        with av.open(str(video)) as container:
            wanted = sample_indices(container.streams.video[0].frames, NUM_FRAMES).tolist()
            kept = {}
            for index, frame in enumerate(container.decode(video=0)):
                if index in wanted:
                    kept[index] = frame.to_ndarray(format="rgb24")
                if index == wanted[-1]:
                    break
        return preprocess([kept[index] for index in wanted], CONFIG).tobytes()

    return sample


def load(video: Path, bundle: Path) -> Sample:
    """``load_clip``, whose process starts with it, and ``preprocess``."""
    return lambda: _pixels(load_clip(video, num_frames=NUM_FRAMES))


def load_ahead(video: Path, bundle: Path) -> Sample:
    """The same with a decoder process that was started before."""
    from blip3v.video import SpareDecoder  # other sides run with code that has none

    spare = SpareDecoder()
    return lambda: _pixels(load_clip(video, num_frames=NUM_FRAMES, spare=spare))


def _pixels(clip: Clip) -> bytes:
    return preprocess(clip.frames, CONFIG).tobytes()


# --- the decoder's work alone, in this process ----------------------------------------------------------------------


def decode(video: Path, bundle: Path, *, num_threads: int | None = None) -> Sample:
    """Opens the file, lists its frames and decodes the wanted ones, with a thread for each CPU."""
    from blip3v.video_decoder import __main__ as decoder
    from blip3v.video_decoder.container import is_truncated, open_container, video_stream
    from blip3v.video_decoder.limits import VideoLimits
    from blip3v.video_decoder.pick import pick
    from blip3v.video_decoder.walk import walk_file

    limits = VideoLimits()

    def sample() -> bytes:
        with open(video, "rb") as file:

            def opener() -> Any:
                container = open_container(file)
                return container, video_stream(container, limits)

            walk = walk_file(opener, limits, truncated=is_truncated(file))
            wanted = sorted(set(sample_indices(walk.num_frames, NUM_FRAMES).tolist()))
            threads = num_threads or decoder._num_threads(walk, len(wanted), limits)
            frames = [frame.to_ndarray(format="rgb24") for _, frame in pick(opener, walk, wanted, num_threads=threads)]
        return np.stack(frames).tobytes()

    return sample


def decode_in_one_thread(video: Path, bundle: Path) -> Sample:
    """The same, one stretch after another."""
    return decode(video, bundle, num_threads=1)


def decode_every_picture(video: Path, bundle: Path) -> Sample:
    """The same with the pictures that no other one refers to."""
    from blip3v.video_decoder import run

    run._pictures = lambda stream: None
    return decode(video, bundle)


def decode_with_long_stretches(video: Path, bundle: Path) -> Sample:
    """The same, seeking only where 128 frames or more are passed over."""
    from blip3v.video_decoder import pick

    pick._LEAST_SEEK_FRAMES = pick._SEEK_FRAMES
    return decode(video, bundle)


# --- an answer ------------------------------------------------------------------------------------------------------


def answer(video: Path, bundle: Path) -> Sample:
    """``VideoLM.ask`` about the file."""
    from blip3v.runtime import VideoLM

    lm = VideoLM.open(bundle)
    return lambda: lm.ask(video, QUESTION).text.encode()


def answer_without_server(video: Path, bundle: Path) -> Sample:
    """The same where nothing is forked: the process of the next request starts with each one."""
    from blip3v.video import decoder_server  # other sides run with code that has none

    decoder_server.can_serve = lambda: False
    return answer(video, bundle)


def answer_without_spare(video: Path, bundle: Path) -> Sample:
    """The same with a decoder process that starts with the request."""
    from blip3v.runtime import VideoLM

    lm = VideoLM.open(bundle)
    with lm._owner.lease() as model:
        model.spare_decoder.close()
    return lambda: lm.ask(video, QUESTION).text.encode()


SIDES: dict[str, Callable[[Path, Path], Sample]] = {
    "loop": loop,
    "load": load,
    "load-ahead": load_ahead,
    "decode": decode,
    "decode-in-one-thread": decode_in_one_thread,
    "decode-every-picture": decode_every_picture,
    "decode-with-long-stretches": decode_with_long_stretches,
    "answer": answer,
    "answer-without-server": answer_without_server,
    "answer-without-spare": answer_without_spare,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
