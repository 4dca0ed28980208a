"""All that wants a CUDA device, in one call: parity with the CPU, then training and inference at full size.

    python scripts/gpu_checks.py benchmarks/results/gpu.json

Needs torch, transformers and a CUDA device with 80 GB; no network, no video decoder. The weights are random, other ones
in every layer: speed and memory do not depend on them. Rows are measured in turns; the JSON holds every time.
"""

# Shapes: B clips, T frames, M video tokens, L text tokens, S side of a frame.

from __future__ import annotations

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import blip3v
from blip3v.config import ModelConfig, preset
from blip3v.model import IGNORE, Blip3Video
from blip3v.model.generate import greedy

ROWS = (("none", 1024), ("gttm", 128), ("tokenlearner", 32), ("tokenlearner", 16))
BATCH_SIZE = 4  # clips on one device in the paper's instruction tuning
QUESTION_TOKENS, ANSWER_TOKENS = 32, 32
TURNS, WARMUP = 5, 2
BF16_TOLERANCE = 3e-2  # largest difference over largest value, after all layers of tiny


def main(output: Path) -> None:
    """Runs everything and writes ``output``."""
    if not torch.cuda.is_available():
        sys.exit("no CUDA device: torch.cuda.is_available() is false; run this where one is")
    report: dict[str, Any] = {"environment": _environment(), "parity": _parity()}
    print(json.dumps(report["parity"]), file=sys.stderr)
    for name, measure in (("training", _training_step), ("inference", _inference)):
        report[name] = _in_turns(measure)
        print(name, json.dumps(report[name]), file=sys.stderr)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n", "utf-8")
    print(output)


def _environment() -> dict[str, Any]:
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "blip3v": blip3v.__version__,
        "python": platform.python_version(),
        "preset": "xgen-mm-vid",
        "dtype": "bfloat16",
        "batch_size": BATCH_SIZE,
        "question_tokens": QUESTION_TOKENS,
        "answer_tokens": ANSWER_TOKENS,
    }


def _parity() -> dict[str, float]:
    """Logits of tiny with each encoder: CUDA fp32 and bf16 against the CPU in fp32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    errors = {}
    for encoder, _ in ROWS:
        torch.manual_seed(0)
        model = Blip3Video(preset("tiny").with_encoder(encoder)).eval()
        frames, ids = _inputs(model.config, 2)
        want = _logits(model, frames, ids)
        errors[f"{encoder} fp32"] = _relative(_logits(model.cuda(), frames.cuda(), ids.cuda()), want)
        half = model.bfloat16()
        errors[f"{encoder} bf16"] = _relative(_logits(half, frames.cuda().bfloat16(), ids.cuda()), want)
    bad = {name: error for name, error in errors.items() if error > (1e-3 if name.endswith("fp32") else BF16_TOLERANCE)}
    if bad:
        sys.exit(f"CUDA and CPU differ: {bad}")
    return errors


@torch.inference_mode()
def _logits(model: Blip3Video, frames_BTCHW: Tensor, ids_BL: Tensor) -> Tensor:
    position = torch.zeros(len(ids_BL), dtype=torch.long, device=ids_BL.device)
    return model(ids_BL, position, model.encode_video(frames_BTCHW)).float().cpu()


def _relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def _inputs(config: ModelConfig, batch: int) -> tuple[Tensor, Tensor]:
    side = config.vision.image_size
    frames_BTCHW = torch.rand(batch, config.num_frames, 3, side, side) * 2 - 1
    return frames_BTCHW, torch.randint(0, 600, (batch, QUESTION_TOKENS))


def _model(encoder: str, num_tokens: int) -> Blip3Video:
    config = preset("xgen-mm-vid").with_encoder(encoder, num_tokens=num_tokens)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return Blip3Video(config)
    finally:
        torch.set_default_dtype(torch.float32)


def _training_step(model: Blip3Video) -> Callable[[], None]:
    """Forward, backward and AdamW on a batch of clips; the vision encoder is frozen."""
    model.vision_encoder.requires_grad_(False)
    optimizer = torch.optim.AdamW([x for x in model.parameters() if x.requires_grad], lr=1e-5)
    frames, question = _inputs(model.config, BATCH_SIZE)
    frames = frames.cuda().bfloat16()
    ids = torch.cat((question, torch.randint(0, 600, (BATCH_SIZE, ANSWER_TOKENS))), dim=1).cuda()
    labels = ids.clone()
    labels[:, :QUESTION_TOKENS] = IGNORE
    position = torch.zeros(BATCH_SIZE, dtype=torch.long, device="cuda")

    def step() -> None:
        with torch.no_grad():
            features = model.features(frames)
        loss, count = model.loss(ids, labels, position, model.vision_tokenizer(features))
        (loss / count).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _inference(model: Blip3Video) -> Callable[[], None]:
    """Encode and answer a batch of clips greedily, the stop token ignored."""
    model.eval()
    frames, ids = _inputs(model.config, BATCH_SIZE)
    frames, ids = frames.cuda().bfloat16(), ids.cuda()
    position = torch.zeros(BATCH_SIZE, dtype=torch.long, device="cuda")

    def step() -> None:
        with torch.inference_mode():
            video = model.encode_video(frames)
        greedy(model, ids, position, video, max_new_tokens=ANSWER_TOKENS, stop_id=None)

    return step


def _in_turns(make: Callable[[Blip3Video], Callable[[], None]]) -> list[dict[str, Any]]:
    """Each row in turn, TURNS times over; a row's model is built anew, since two do not fit beside each other."""
    times: dict[tuple[str, int], list[float]] = {row: [] for row in ROWS}
    peaks: dict[tuple[str, int], float] = {}
    for _ in range(TURNS):
        for row in ROWS:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            step = make(_model(*row))
            times[row] += _timed(step)
            peaks[row] = torch.cuda.max_memory_allocated() / 2**30
            del step
    baseline = statistics.median(times[ROWS[0]])
    return [
        {
            "encoder": row[0],
            "num_tokens": row[1],
            "samples_per_s": BATCH_SIZE / statistics.median(times[row]),
            "times_baseline": baseline / statistics.median(times[row]),
            "peak_gib": peaks[row],
            "step_s": times[row],
        }
        for row in ROWS
    ]


def _timed(step: Callable[[], None]) -> list[float]:
    seconds = []
    for at in range(WARMUP + 3):
        torch.cuda.synchronize()
        began = time.perf_counter()
        step()
        torch.cuda.synchronize()
        if at >= WARMUP:
            seconds.append(time.perf_counter() - began)
    return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "benchmarks/results/gpu.json"))
