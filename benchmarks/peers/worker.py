"""A process in the environment of one stack. Needs the standard library, numpy and the stack.

    python worker.py packages
    python worker.py prepare FILE FORM CHECKPOINT FOLDER
    python worker.py serve FILE PART FORM ENGINE CHECKPOINT FOLDER THREADS

``serve`` opens one part and says {"opened_s": ...}. It then answers each line of its input with a line of JSON:

    {"op": "generate", "prompt": 160, "steps": 12, "seed": 0}   {"prefill_s": ..., "steps_s": [...], "logits": [...]}
    {"op": "encode", "frames": 8}                    {"encode_s": ...}
    {"op": "memory"}                                 {"peak_rss_bytes": ...}

It ends with its input. What libraries print goes to the standard error.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parents[2]
# A stack's own packages come first, and nothing in this folder may stand for one of them.
sys.path = [*(path for path in sys.path if Path(path or ".").resolve() != Path(__file__).resolve().parent), str(ROOT)]

from benchmarks.peers.protocol import FRAME_SEED, Decoder, Tower  # noqa: E402  # after the path


def main(what: str, *words: str) -> None:
    """Runs one of the three."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    if what == "packages":
        _say(answers, {item.metadata["Name"]: item.version for item in importlib.metadata.distributions()})
    elif what == "prepare":
        file, form, checkpoint, folder = words
        _module(file).prepare(form, Path(checkpoint), Path(folder))
    else:
        serve(answers, *words)


def serve(
    answers: TextIO, file: str, part: str, form: str, engine: str, checkpoint: str, folder: str, threads: str
) -> None:
    """Opens a part, and answers until the input ends."""
    started_s = time.perf_counter()
    opened = getattr(_module(file), f"open_{part}")(form, engine, Path(checkpoint), Path(folder), int(threads))
    _say(answers, {"opened_s": time.perf_counter() - started_s})
    sizes = json.loads((Path(checkpoint) / "sizes.json").read_text("utf-8"))
    for line in sys.stdin:
        _say(answers, _answer(json.loads(line), opened, sizes))


def _answer(request: dict[str, Any], opened: Decoder | Tower, sizes: dict[str, int]) -> dict[str, Any]:
    if request["op"] == "memory":
        return {"peak_rss_bytes": _peak_rss_bytes()}
    if request["op"] == "generate":
        # Another first token for each seed: nothing can be reused from an earlier prompt.
        start, last = 13 * request["seed"], sizes["num_ids"] - 1
        ids = [1 + (start + 7 * number) % last for number in range(request["prompt"])]
        return dict(vars(opened.generate(ids, request["steps"])))  # type: ignore[union-attr]
    import numpy as np

    side = sizes["image_size"]
    frames = np.random.default_rng(FRAME_SEED).uniform(-1, 1, (request["frames"], 3, side, side)).astype(np.float32)
    started_s = time.perf_counter()
    opened.encode(frames)  # type: ignore[union-attr]
    return {"encode_s": time.perf_counter() - started_s}


def _module(file: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"_{Path(file).stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _peak_rss_bytes() -> int | None:
    try:
        lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), None)


def _say(answers: TextIO, value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
