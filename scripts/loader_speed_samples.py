"""What loader_speed.py runs in processes of its own, which stay loaded and are asked in turns.

    python scripts/loader_speed_samples.py SIDE LIST    # one sample for each line of its input

Each answer is a line of JSON: the seconds, the CPU seconds of the process and all below it, and a hash of the pixels.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import torch

from blip3v.data.authors import open_clips
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, Tokenizer, train_tokenizer
from blip3v.video.preprocess import PreprocessorConfig

CLIPS_PER_BATCH, BATCHES_PER_SAMPLE = 4, 8
NUM_FRAMES, SEED, MOST_SAMPLES = 8, 1, 200
CONFIG = PreprocessorConfig(image_size=384)

Take = Callable[[], list[Any]]

_OPEN = ExitStack()  # until the process ends


def main(side: str, listed: str) -> None:
    """Prepares the side, says that it is ready, then measures one sample for each line."""
    torch.set_num_threads(1)  # this process does little beside the workers: threads that wait would take their CPUs
    settle, take = SIDES[side](listed)
    print(json.dumps({"ready": side}), flush=True)
    with _OPEN:
        _answer_all(settle, take)


def _answer_all(settle: Callable[[], None], take: Take) -> None:
    for _ in sys.stdin:
        settle()
        cpu_s, started_s = _cpu_s(), time.perf_counter()
        batches = take()
        seconds, cpu_s = time.perf_counter() - started_s, _cpu_s() - cpu_s
        digest = hashlib.sha256()
        for pixels_CTCHW in batches:
            digest.update(pixels_CTCHW.numpy().tobytes())
        print(json.dumps({"seconds": seconds, "cpu_s": cpu_s, "sha256": digest.hexdigest()}), flush=True)


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    running = [child.cpu_times() for child in psutil.Process().children(recursive=True)]
    below_s = sum(one.user + one.system + one.children_user + one.children_system for one in running)
    return float(below_s + sum(one.ru_utime + one.ru_stime for one in used))


def _chat(chat_format: Any) -> Any:
    tokenizer = train_tokenizer(["What happens? Things move."] * 4, vocab_size_base=300)
    return chat_format(Tokenizer(tokenizer), RELEASED_TEMPLATE, GenerationConfig(system_prompt=None, max_new_tokens=8))


def base(listed: str) -> tuple[Callable[[], None], Take]:
    """Batches as the code before the workers made them: one clip after the other, a process for each."""
    from blip3v.training.batch import ChatFormat  # type: ignore[attr-defined]  # of the base's code
    from blip3v.training.loop import Batches  # type: ignore[attr-defined]

    source = open_clips(listed, num_frames=NUM_FRAMES, seed=SEED)
    batches = Batches(source, _chat(ChatFormat), CONFIG, CLIPS_PER_BATCH, SEED)
    return lambda: None, lambda: [batches.batch(step).pixels_CTCHW for step in range(BATCHES_PER_SAMPLE)]


def _ours(listed: str, workers: int) -> tuple[Callable[[], None], Take]:
    from blip3v.training.chat_rows import ChatFormat
    from blip3v.training.clip_batches import Batches
    from blip3v.training.clip_pixels import ClipPixels
    from blip3v.training.loading import loaded_ahead
    from blip3v.training.loop import Share, _Shares

    source = open_clips(listed, num_frames=NUM_FRAMES, seed=SEED)
    batches = Batches(ClipPixels(source, CONFIG), _chat(ChatFormat), CLIPS_PER_BATCH, SEED)
    ahead = 2 * workers  # what is made between two samples, in the time of the other sides
    steps = [*[0] * ahead, *range(BATCHES_PER_SAMPLE)] * MOST_SAMPLES
    shares = [Share(step, 0, 1) for step in steps]
    loaded: Iterator[Any] = _OPEN.enter_context(loaded_ahead(_Shares(batches), shares, workers=workers))

    def settle() -> None:
        for _ in range(ahead):
            next(loaded)

    # Normalised here and not by a GPU, as where there is none: the base's code does it too.
    return settle, lambda: [next(loaded).pictures.pixels() for _ in range(BATCHES_PER_SAMPLE)]


def with_workers(listed: str) -> tuple[Callable[[], None], Take]:
    """The loader as ``blip3v train`` uses it: as many workers as it takes of its own accord."""
    from blip3v.training.loading import default_workers

    return _ours(listed, default_workers())


def without_workers(listed: str) -> tuple[Callable[[], None], Take]:
    """The loader in this process, with its decoder process."""
    return _ours(listed, 0)


SIDES: dict[str, Callable[[str], tuple[Callable[[], None], Take]]] = {
    "base": base,
    "workers": with_workers,
    "no-workers": without_workers,
}


if __name__ == "__main__":
    main(*sys.argv[1:])
