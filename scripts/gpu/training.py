"""Stage ``training``: samples per second of a training step at 1024, 128, 32 and 16 video tokens.

The steps are those of ``blip3v bench --training``. Here they are also measured with compiled layers, and where a step
does not fit into the device's memory, one that takes less is measured instead and the report says so.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from blip3v.bench.training.report import speed
from blip3v.bench.training.rows import BASELINE, PAPER_SAMPLES_PER_S, Row
from blip3v.bench.training.steps import StepSample, Trainee, TrainingPrecision, synthetic_batch
from blip3v.model import Blip3Video
from blip3v.model.blocks import pairs
from scripts.gpu.plan import ANSWER_TOKENS, QUESTION_TOKENS, Budget, Plan, first_line
from scripts.gpu.report import Report

__all__ = ["CompiledTrainee", "Form", "forms", "smaller_forms", "summary", "training"]

_BATCH_SIZES = (4, 16)  # clips on one device: the paper's stage 3, then its stage 2
_SMALLEST_BATCH_SIZES = (2,)
_PRECISION: TrainingPrecision = "bf16-weights"

_WHAT = {
    "weights": "bfloat16, without an fp32 copy",
    "gradients": "bfloat16, clipped to a norm of 1",
    "optimizer": "AdamW, fused on CUDA, moments in bfloat16",
    "frozen": "vision_encoder",
    "trained": "vision_tokenizer with its temporal encoder, lang_model",
    "text": "32 question tokens, 32 answer tokens; the loss is on the answer",
    "turns": "one step of each row in turn; rows share all weights and moments except the temporal encoder's",
    "compiled": "layers of vision encoder and language model, attentions of the resampler; fullgraph, static shapes",
    "left_out": "data loading, communication between devices",
    "paper_samples_per_s": {str(count): speed for count, speed in PAPER_SAMPLES_PER_S.items()},
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a step is run."""

    batch_size: int
    checkpointing: bool = False  # recompute the activations of layers in the backward pass
    compiled: bool = False

    def __str__(self) -> str:
        extras = (", checkpointed" if self.checkpointing else "") + (", compiled" if self.compiled else "")
        return f"batch {self.batch_size}{extras}"


class CompiledTrainee(Trainee):
    """A trainee whose layers can be compiled, and which can go on after a step that ran out of memory."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan.config, plan.rows, precision=_PRECISION, device=plan.device.type)

    def compile(self, backend: str) -> None:
        """Compiles each layer separately: layers are alike, so each kernel is generated once for all of them."""
        for layer in _layers(self.shared.model):
            layer.compile(fullgraph=True, dynamic=False, backend=backend)

    def free(self) -> None:
        """Frees what a step that ran out of memory left behind."""
        self.shared.model.zero_grad()
        for encoder in self.shared.encoders.values():
            encoder.zero_grad()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()


def training(plan: Plan, report: Report) -> None:
    """Measures every form that is not in the report yet; a form is one entry with all rows."""
    report.describe("training", "what", _WHAT)
    wanted = [form for form in forms(plan) if not report.holds("training", _key(form))]
    if not wanted:
        return
    budget, trainee = Budget(plan.seconds), CompiledTrainee(plan)
    for form in wanted:
        if budget.spent:
            report.skip("training", _key(form), f"the {plan.seconds:g} s of this stage were spent")
            continue
        report.put("training", _key(form), _measure_form(trainee, form, plan, budget))


def forms(plan: Plan) -> list[Form]:
    """All forms in the order of measurement, the compiled ones last: compilation cannot be undone."""
    sizes = _SMALLEST_BATCH_SIZES if plan.smallest else _BATCH_SIZES
    return [Form(batch_size=size, compiled=compiled) for compiled in (False, True) for size in sizes]


def smaller_forms(form: Form) -> Iterator[Form]:
    """``form``, then what to try if it runs out of memory."""
    yield form
    size = form.batch_size
    while size:
        yield Form(batch_size=size, checkpointing=True, compiled=form.compiled)
        size //= 2


def summary(times: dict[Row, list[float]], batch_size: int) -> list[dict[str, Any]]:
    """Speeds and ratios of all rows, from the seconds of their steps."""
    return [
        {
            "encoder": row.encoder,
            "num_video_tokens": row.num_video_tokens,
            **speed(row, step_s, times[BASELINE], batch_size),
            "step_s": step_s,
        }
        for row, step_s in times.items()
    ]


def _measure_form(trainee: CompiledTrainee, form: Form, plan: Plan, budget: Budget) -> dict[str, Any]:
    """Measures all rows in the first form that fits; the result also lists the forms that did not."""
    failures: list[dict[str, str]] = []
    for attempt in smaller_forms(form):
        try:
            measured = _take_turns(trainee, attempt, plan, budget)
        except RuntimeError as error:  # also out of memory, and the errors of dynamo and inductor
            out_of_memory = isinstance(error, torch.OutOfMemoryError)
            if not out_of_memory and not form.compiled:
                raise
            failures.append({"form": str(attempt), "why": first_line(error)})
        else:
            return {"form": str(attempt), **asdict(attempt), "failures": failures, "rows": measured}
        trainee.free()  # only here: until the error is released, it holds the tensors of the step
        if not out_of_memory:
            break
    return {"form": None, "failures": failures, "rows": []}


def _take_turns(trainee: CompiledTrainee, form: Form, plan: Plan, budget: Budget) -> list[dict[str, Any]]:
    trainee.set_checkpointing(form.checkpointing)
    if form.compiled:
        trainee.compile(plan.compile_backend)
    batch = synthetic_batch(
        plan.config,
        form.batch_size,
        question_tokens=QUESTION_TOKENS,
        answer_tokens=ANSWER_TOKENS,
        device=trainee.device,
        dtype=trainee.dtype,
    )
    warmup, counted = plan.turns
    taken: dict[Row, list[StepSample]] = {row: [] for row in plan.rows}
    for turn in range(warmup + counted):
        for row in plan.rows:
            taken[row].append(trainee.sample(row, batch))
        if turn >= warmup and budget.spent:
            break
    times = {row: [sample.step_s for sample in samples[warmup:]] for row, samples in taken.items()}
    extra = [_first_and_peak(samples) for samples in taken.values()]
    return [{**row, **more} for row, more in zip(summary(times, form.batch_size), extra, strict=True)]


def _first_and_peak(samples: list[StepSample]) -> dict[str, Any]:
    peak = samples[-1].peak_bytes
    return {
        "first_step_s": samples[0].step_s,
        "first_loss": samples[0].loss,
        "peak_gib": None if peak is None else peak / 2**30,
    }


def _layers(model: Blip3Video) -> Iterator[nn.Module]:
    """The compiled layers. The resampler's feed-forwards are plain sequences, which dynamo leaves to the caller."""
    yield from model.vision_encoder.get_submodule("encoder.layers").children()
    for attention, _ in pairs(model.vision_tokenizer.layers):
        yield attention
    yield from model.lang_model.model.layers


def _key(form: Form) -> str:
    return f"batch {form.batch_size}{', compiled' if form.compiled else ''}"
