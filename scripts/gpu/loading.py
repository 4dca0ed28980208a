"""Stage ``loading``: the share of a training step that waits for its data.

The steps are those of stage ``training``, in its eager form; their batches come from the trainer's own loader, which
decodes and resizes short 720p clips meanwhile. The bar is a share below 5 %.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from blip3v.data.authors import open_clips
from blip3v.extras import pip_command
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, Tokenizer, train_tokenizer
from blip3v.training.batch import Batch
from blip3v.training.chat_rows import ChatFormat
from blip3v.training.clip_batches import Batches
from blip3v.training.clip_pixels import ClipPixels
from blip3v.training.loading import default_workers, loaded_ahead
from blip3v.video.preprocess import PreprocessorConfig
from scripts.gpu.environment import is_installed
from scripts.gpu.plan import Budget, Plan, first_line
from scripts.gpu.report import Report
from scripts.gpu.training import CompiledTrainee, Form, forms

__all__ = ["BAR", "Waited", "loading", "waits"]

BAR = 0.05
_SEED = 1

_WHAT = {
    "clips": "films of 3 to 10 s, H.264, 960x720; 8 frames of each",
    "step": "as in stage training; the encoder is the last of its rows, whose steps are the shortest",
    "waited": "share of the measured steps' time that passed until a batch was there",
    "warm_up": "as many steps as batches are made ahead, and some more: what was made before does not count",
    "bar": BAR,
}


@dataclasses.dataclass(frozen=True)
class Waited:
    """One step."""

    step_s: float  # with the waiting
    data_s: float  # of that, waiting for the batch


def loading(plan: Plan, report: Report) -> None:
    """Measures every batch size that is not in the report yet."""
    report.describe("loading", "what", _WHAT)
    wanted = [form for form in forms(plan) if not form.compiled and not report.holds("loading", str(form))]
    if not wanted:
        return
    if not is_installed("av"):
        for form in wanted:
            report.skip("loading", str(form), f"PyAV is not installed; run: {pip_command('install', 'av')}")
        return
    budget, listed = Budget(plan.seconds), _clips(plan)
    trainee = CompiledTrainee(plan)
    for form in wanted:
        if budget.spent:
            report.skip("loading", str(form), f"the {plan.seconds:g} s of this stage were spent")
            continue
        report.put("loading", str(form), _measure(trainee, form, plan, listed))


def waits(steps: list[Waited]) -> dict[str, Any]:
    """Means over the measured steps."""
    step_s, data_s = (sum(getattr(step, name) for step in steps) for name in ("step_s", "data_s"))
    count = len(steps)
    return {"num_steps": count, "step_s": step_s / count, "data_s": data_s / count, "waited": data_s / step_s}


def _measure(trainee: CompiledTrainee, form: Form, plan: Plan, listed: Path) -> dict[str, Any]:
    row, workers = plan.rows[-1], 1 if plan.smallest else default_workers()
    warmup, counted = plan.turns
    warmup, counted = warmup + 2 * workers, 2 * counted
    taken: list[Waited] = []
    try:
        with _batches(plan, form, listed, workers, warmup + counted) as batches:
            for _ in range(warmup + counted):
                started_s = time.perf_counter()
                batch = next(batches)
                data_s = time.perf_counter() - started_s
                trainee.step(row, _in_dtype(batch, trainee.dtype))  # waits for the loss
                taken.append(Waited(time.perf_counter() - started_s, data_s))
    except torch.OutOfMemoryError as error:
        failure = first_line(error)
    else:
        found = {"encoder": row.encoder, "num_video_tokens": row.num_video_tokens, "batch_size": form.batch_size}
        return {**found, "workers": workers, **waits(taken[warmup:])}
    trainee.free()  # only here: until the error is released, it holds the tensors of the step
    return {"failed": failure}


@contextmanager
def _batches(plan: Plan, form: Form, listed: Path, workers: int, num_steps: int) -> Iterator[Iterator[Batch]]:
    """The batches of ``num_steps`` steps, as the trainer asks for them."""
    source = open_clips(str(listed), num_frames=plan.config.num_frames, seed=_SEED)
    pixels = ClipPixels(source, PreprocessorConfig(image_size=plan.config.vision.image_size))
    made = _Steps(Batches(pixels, _chat(), form.batch_size, _SEED))
    with loaded_ahead(made, range(num_steps), workers=workers, pin=plan.device.type == "cuda") as batches:
        yield batches


@dataclasses.dataclass(frozen=True)
class _Steps:
    batches: Batches

    def __getitem__(self, step: int) -> Batch:
        return self.batches.batch(step)


def _in_dtype(batch: Batch, dtype: torch.dtype) -> Batch:
    """The batch, whose pixels will have the dtype of the weights."""
    assert batch.pictures is not None, "no features are cached here"
    values_KV = batch.pictures.values_KV.to(dtype)
    return dataclasses.replace(batch, pictures=dataclasses.replace(batch.pictures, values_KV=values_KV))


def _chat() -> ChatFormat:
    """A tokenizer with few ids, all of which every model has."""
    tokenizer = Tokenizer(train_tokenizer(["What happens? Things move."] * 4, vocab_size_base=300))
    return ChatFormat(tokenizer, RELEASED_TEMPLATE, GenerationConfig(system_prompt=None, max_new_tokens=8))


def _clips(plan: Plan) -> Path:
    from scripts.loader_speed import write_clips  # needs PyAV

    return write_clips(plan.folder / "clips", **({"num_clips": 2, "height": 240} if plan.smallest else {}))
