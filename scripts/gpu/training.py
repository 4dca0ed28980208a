"""Stage ``training``: samples per second of a training step at 1024, 128, 32 and 16 video tokens.

A step is what one device does in the paper's stages 2 and 3: the frozen vision encoder without gradients, then forward
and backward of resampler, temporal encoder and language model, gradient clipping, AdamW. Data loading is not included.
"""

# Shapes: B clips, L text tokens.

from __future__ import annotations

import gc
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from blip3v.model import IGNORE_INDEX, Blip3Video
from blip3v.model.blocks import pairs
from scripts.gpu.models import Inputs, SharedModel, make_inputs, peak_gib, reset_peak
from scripts.gpu.plan import (
    BASELINE,
    PAPER_SAMPLES_PER_S,
    QUESTION_TOKENS,
    Budget,
    Plan,
    Row,
    Stopwatch,
    first_line,
)
from scripts.gpu.report import Report

__all__ = ["Form", "Trainee", "forms", "smaller_forms", "summary", "training"]

_BATCH_SIZES = (4, 16)  # clips on one device: the paper's stage 3, then its stage 2
_SMALLEST_BATCH_SIZES = (2,)
_DTYPE = torch.bfloat16

_WHAT = {
    "weights": "bfloat16, without an fp32 copy",
    "gradients": "bfloat16, clipped to a norm of 1",
    "optimizer": "AdamW, fused on CUDA, moments in bfloat16",
    "frozen": "vision_encoder, run under no_grad",
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
    checkpointing: bool = False  # recompute the activations of language layers in the backward pass
    compiled: bool = False

    def __str__(self) -> str:
        extras = (", checkpointed" if self.checkpointing else "") + (", compiled" if self.compiled else "")
        return f"batch {self.batch_size}{extras}"


class Trainee:
    """The model of all rows with its optimisers: one for what the rows share, one for each temporal encoder."""

    def __init__(self, plan: Plan) -> None:
        self.device = plan.device
        self.shared = SharedModel(plan.config, plan.rows, device=plan.device, dtype=_DTYPE)
        model = self.shared.use(BASELINE)  # its encoder has no weights
        model.train()
        model.vision_encoder.eval().requires_grad_(False)
        self.common = [weight for weight in model.parameters() if weight.requires_grad]
        self._optimizer = self._adamw(self.common)
        self._own = {row: list(encoder.parameters()) for row, encoder in self.shared.encoders.items()}
        self._own_optimizers = {row: self._adamw(own) for row, own in self._own.items() if own}

    def step(self, row: Row, inputs: Inputs) -> float:
        """Runs one step; returns the loss before it, the mean over the answer's tokens."""
        loss = _loss(self.shared.use(row), inputs)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_([*self.common, *self._own[row]], 1.0)
        for optimizer in self._optimizers(row):
            optimizer.step()
            optimizer.zero_grad()
        return float(loss.detach())

    def set_checkpointing(self, on: bool) -> None:
        """Sets whether the language model keeps only its layers' inputs for the backward pass, or all activations."""
        language: Any = self.shared.model.lang_model.model
        kind = (
            "activation" if hasattr(language, "activation_checkpointing_enable") else "gradient"
        )  # it is gradient in 5.17
        if on:
            getattr(language, f"{kind}_checkpointing_enable")({"use_reentrant": False})
        else:
            getattr(language, f"{kind}_checkpointing_disable")()

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

    def _optimizers(self, row: Row) -> Iterator[torch.optim.Optimizer]:
        yield self._optimizer
        if row in self._own_optimizers:
            yield self._own_optimizers[row]

    def _adamw(self, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(weights, lr=1e-5, fused=self.device.type == "cuda")


def training(plan: Plan, report: Report) -> None:
    """Measures every form that is not in the report yet; a form is one entry with all rows."""
    report.describe("training", "what", _WHAT)
    wanted = [form for form in forms(plan) if not report.holds("training", _key(form))]
    if not wanted:
        return
    budget, trainee = Budget(plan.seconds), Trainee(plan)
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
    medians = {row: statistics.median(seconds) for row, seconds in times.items()}
    return [
        {
            "encoder": row.encoder,
            "num_video_tokens": row.num_video_tokens,
            "samples_per_s": batch_size / median,
            "times_baseline": medians[BASELINE] / median,
            "paper_samples_per_s": PAPER_SAMPLES_PER_S[row.num_video_tokens],
            "paper_times_baseline": PAPER_SAMPLES_PER_S[row.num_video_tokens]
            / PAPER_SAMPLES_PER_S[BASELINE.num_video_tokens],
            "step_s": times[row],
        }
        for row, median in medians.items()
    ]


def _measure_form(trainee: Trainee, form: Form, plan: Plan, budget: Budget) -> dict[str, Any]:
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


def _take_turns(trainee: Trainee, form: Form, plan: Plan, budget: Budget) -> list[dict[str, Any]]:
    trainee.set_checkpointing(form.checkpointing)
    if form.compiled:
        trainee.compile(plan.compile_backend)
    inputs = make_inputs(plan.config, form.batch_size, device=plan.device, dtype=_DTYPE)
    watch = Stopwatch(plan.device)
    warmup, counted = plan.turns
    times: dict[Row, list[float]] = {row: [] for row in plan.rows}
    first_s, losses, peaks = {}, {}, {}
    for turn in range(warmup + counted):
        for row in plan.rows:
            reset_peak(plan.device)
            seconds, loss = watch.time(partial(trainee.step, row, inputs))
            peaks[row] = peak_gib(plan.device)
            if turn == 0:
                first_s[row], losses[row] = seconds, loss
            if turn >= warmup:
                times[row].append(seconds)
        if turn >= warmup and budget.spent:
            break
    extra = [{"first_step_s": first_s[row], "first_loss": losses[row], "peak_gib": peaks[row]} for row in plan.rows]
    return [{**row, **more} for row, more in zip(summary(times, form.batch_size), extra, strict=True)]


def _loss(model: Blip3Video, inputs: Inputs) -> Tensor:
    labels_BL = inputs.ids_BL.clone()
    labels_BL[:, : 1 + QUESTION_TOKENS] = IGNORE_INDEX
    with torch.no_grad():
        features = model.features(inputs.frames_BTCHW)
    total, count = model.loss(inputs.ids_BL, labels_BL, inputs.position_B, model.vision_tokenizer(features))
    return total / count


def _layers(model: Blip3Video) -> Iterator[nn.Module]:
    """The compiled layers. The resampler's feed-forwards are plain sequences, which dynamo leaves to the caller."""
    yield from model.vision_encoder.get_submodule("encoder.layers").children()
    for attention, _ in pairs(model.vision_tokenizer.layers):
        yield attention
    yield from model.lang_model.model.layers


def _key(form: Form) -> str:
    return f"batch {form.batch_size}{', compiled' if form.compiled else ''}"
