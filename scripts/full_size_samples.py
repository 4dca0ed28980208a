"""What full_size_quantized.py runs in processes of its own: an answer, samples of one graph, a model to be written.

    python scripts/full_size_samples.py ask BUNDLE BACKEND
    python scripts/full_size_samples.py graph BUNDLE BACKEND GRAPH    # one sample for each line of its input
    python scripts/full_size_samples.py model FOLDER CONFIG.json

Results are lines of JSON.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from blip3v.bundle.reader import open_bundle
from blip3v.config import ModelConfig
from blip3v.runtime import GenerationOptions, VideoLM
from blip3v.runtime.backends import get_backend
from blip3v.runtime.cancellation import Deadline
from blip3v.runtime.memory import peak_rss_bytes
from blip3v.runtime.opening import graph_files

ROOT = Path(__file__).resolve().parents[1]
CLIP = "examples/turn.mp4"
QUESTION = "Which way does the red circle turn?"
NEW_TOKENS = 16
PROMPT_TOKENS = 160
DECODE_STEPS = 12
NUM_FRAMES = 8


def main(what: str, *words: str) -> None:
    """Runs one of the three."""
    if what == "ask":
        print(json.dumps(ask(Path(words[0]), words[1])))
    elif what == "graph":
        sample_graph(Path(words[0]), words[1], words[2])
    else:
        write_model(Path(words[0]), ModelConfig.load(Path(words[1])))


def ask(bundle: Path, backend: str) -> dict[str, Any]:
    """Opens the bundle and answers once."""
    started_s = time.perf_counter()
    with VideoLM.open(bundle, backend=backend, allow_random=True) as lm:
        open_s = time.perf_counter() - started_s
        opened = _status()
        with _Watch() as watch:
            options = GenerationOptions(max_new_tokens=NEW_TOKENS, ignore_stop_token=True)
            answer = lm.ask(ROOT / CLIP, QUESTION, options=options)
        timings = answer.timings
        return {
            "bundle_bytes": open_bundle(bundle).manifest.size_bytes,
            "computed": str(lm.backend),
            "open_s": open_s,
            "resident_when_open": opened,
            "resident_while_asking": watch.largest,  # the most of each, sampled every 50 ms
            "peak_rss_bytes": peak_rss_bytes(),  # of the whole process, opening included
            "usage": dataclasses.asdict(answer.usage),
            "timings": dataclasses.asdict(timings) | {"per_token_s": timings.per_token_s},
        }


class _Watch:
    """Samples the resident memory of this process while it is entered."""

    def __init__(self) -> None:
        self.largest: dict[str, int] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.largest = {key: max(value, self.largest.get(key, 0)) for key, value in _status().items()}
            if self._done.wait(0.05):
                return


def _status() -> dict[str, int]:
    """Resident bytes of this process: all, its own, and pages of mapped files, which the system can drop."""
    names = {"VmRSS": "rss_bytes", "RssAnon": "anonymous_bytes", "RssFile": "file_bytes"}
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    pairs = (line.partition(":") for line in lines)
    return {names[key]: int(value.split()[0]) * 1024 for key, _, value in pairs if key in names}


def sample_graph(bundle: Path, backend: str, graph: str) -> None:
    """Opens one graph, and takes one sample for each line of the input."""
    opened = open_bundle(bundle)
    engine, file = get_backend(backend), graph_files(opened)[graph]  # type: ignore[index]
    print(json.dumps({"computed": str(engine.execution(file.precision))}), flush=True)
    samples = _decoder_samples(engine, file, opened) if graph == "decoder" else _video_samples(engine, file, opened)
    for _, sample in zip(sys.stdin, samples, strict=False):
        print(json.dumps(sample), flush=True)


def _decoder_samples(engine: Any, file: Any, opened: Any) -> Iterator[dict[str, float]]:
    text = opened.config.text
    decoder = engine.open_decoder(file, text)
    rng = np.random.default_rng(0)
    prompt_tD = rng.normal(0, 0.5, (PROMPT_TOKENS, text.hidden_size)).astype(decoder.dtype)
    while True:
        session = decoder.session(1, PROMPT_TOKENS + DECODE_STEPS)
        started_s = time.perf_counter()
        session.prefill([prompt_tD], Deadline(None, None))
        prefill_s = time.perf_counter() - started_s
        steps = []
        for _ in range(DECODE_STEPS):
            started_s = time.perf_counter()
            session.step(prompt_tD[:1])
            steps.append(time.perf_counter() - started_s)
        session.close()
        yield {"prefill_s": prefill_s, "decode_s": statistics.median(steps)}


def _video_samples(engine: Any, file: Any, opened: Any) -> Iterator[dict[str, float]]:
    encoder, side = engine.open_video_encoder(file), opened.config.vision.image_size
    frames = np.random.default_rng(0).uniform(-1, 1, (1, NUM_FRAMES, 3, side, side)).astype(np.float32)
    while True:
        started_s = time.perf_counter()
        encoder.run(frames, Deadline(None, None))
        yield {"encode_s": time.perf_counter() - started_s}


def write_model(folder: Path, config: ModelConfig) -> None:
    """Writes a model folder with random weights in half precision."""
    import torch

    from blip3v.export.source import random_source
    from blip3v.model.folder import write_model_folder
    from blip3v.model.weight_file import tensor_info
    from blip3v.model.weights import state_shapes

    source = random_source(config)
    write_model_folder(
        folder,
        config,
        {
            name: tensor_info(name, torch.empty(s, device="meta"), torch.float16)
            for name, s in state_shapes(config).items()
        },
        lambda name: source.weights[name],
        tokenizer_json=source.tokenizer_json,
        preprocessor=source.preprocessor,
        generation=source.generation,
        chat_template=source.chat_template,
        replace=True,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
