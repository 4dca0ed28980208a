"""Stage ``generation``: how fast the reference encodes a clip, prefills a prompt and answers greedily.

There are two forms. eager: the library's growing KV cache. compiled: a static cache and a compiled decoding step; the
prefill is not compiled, as in the library.
"""

# Shapes: B clips, L text tokens, M video tokens, S = L + M - 1 spliced tokens, D width, V logits.

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, StaticCache

from blip3v.bench.training.device import Stopwatch, reset_peak
from blip3v.bench.training.random_model import SharedModel
from blip3v.bench.training.rows import Row
from blip3v.model import Blip3Video, splice
from scripts.gpu.models import Inputs, make_inputs, peak_gib
from scripts.gpu.plan import ANSWER_TOKENS, QUESTION_TOKENS, Budget, Plan, first_line
from scripts.gpu.report import Report

__all__ = ["Answerer", "Sample", "generation", "speed"]

_BATCH_SIZES, _SMALLEST_BATCH_SIZES = (1, 4), (1,)
_MODES = ("reduce-overhead", "default")  # of torch.compile; the second is used if the first fails
_DTYPE = torch.bfloat16

_WHAT = {
    "dtype": "bfloat16",
    "text": f"{QUESTION_TOKENS} question tokens, {ANSWER_TOKENS} answer tokens, no stop token",
    "samples_per_s": "clips encoded and answered",
    "language_model_samples_per_s": "prompt prefilled and answered, with the clip already encoded",
    "eager": "the library's growing KV cache",
    "compiled": "static KV cache of the row's length; the whole decoding step compiled, the prefill eager",
    "turns": "one answer of each row in turn",
}

Step = Callable[[Tensor, Cache], Tensor]


class Sample(NamedTuple):
    """Seconds of one batch."""

    encode_s: float
    prefill_s: float  # produces the first new token
    steps_s: float  # produces the others

    @property
    def language_model_s(self) -> float:
        """Prefill and steps."""
        return self.prefill_s + self.steps_s

    @property
    def whole_s(self) -> float:
        """From pixels to the last token."""
        return self.encode_s + self.language_model_s


class Answerer:
    """Answers one batch with one row's encoder in one form.

    Args:
        shared: the model of all rows.
        row: the row whose encoder is used.
        inputs: clips and prompts.
        watch: a stopwatch of the model's device.
        compile_with: backend and mode for ``torch.compile``; None: the eager form.
    """

    def __init__(
        self, shared: SharedModel, row: Row, inputs: Inputs, watch: Stopwatch, compile_with: dict[str, Any] | None
    ) -> None:
        self._shared, self._row, self._inputs, self._watch = shared, row, inputs, watch
        self._cache = None if compile_with is None else _static_cache(shared.model, row)
        self._step = _step_of(shared.model) if compile_with is None else _compiled_step(shared.model, compile_with)

    @torch.no_grad()
    def answer(self) -> tuple[Sample, Tensor]:
        """Returns the seconds, and the ids (B, ANSWER_TOKENS)."""
        model, inputs = self._shared.use(self._row), self._inputs
        if self._cache is not None:
            self._cache.reset()
        encode_s, video_BMD = self._watch.time(lambda: model.encode_video(inputs.frames_BTCHW))
        prefill_s, (id_B, cache) = self._watch.time(lambda: _prefill(model, inputs, video_BMD, self._cache))
        steps_s, ids_BT = self._watch.time(lambda: _continue(self._step, id_B, cache))
        return Sample(encode_s, prefill_s, steps_s), ids_BT


def generation(plan: Plan, report: Report) -> None:
    """Measures every batch size and form that is not in the report yet, each with all rows."""
    report.describe("generation", "what", _WHAT)
    sizes = _SMALLEST_BATCH_SIZES if plan.smallest else _BATCH_SIZES
    wanted = {f"batch {size}, {form}": (size, form) for form in ("eager", "compiled") for size in sizes}
    wanted = {key: case for key, case in wanted.items() if not report.holds("generation", key)}
    if not wanted:
        return
    budget = Budget(plan.seconds)
    shared = SharedModel(plan.config, plan.rows, device=plan.device, dtype=_DTYPE)
    shared.model.eval()
    for key, (size, form) in wanted.items():
        if budget.spent:
            report.skip("generation", key, f"the {plan.seconds:g} s of this stage were spent")
        else:
            report.put("generation", key, _measure(shared, size, form, plan, budget))


def speed(row: Row, samples: list[Sample], batch_size: int) -> dict[str, Any]:
    """Medians of a row, and the seconds they come from."""
    encode_s, prefill_s, steps_s = (statistics.median(seconds) for seconds in zip(*samples, strict=True))
    num_steps = ANSWER_TOKENS - 1
    return {
        "encoder": row.encoder,
        "num_video_tokens": row.num_video_tokens,
        "samples_per_s": batch_size / statistics.median(sample.whole_s for sample in samples),
        "language_model_samples_per_s": batch_size / statistics.median(sample.language_model_s for sample in samples),
        "encode_ms": 1e3 * encode_s,
        "prefill_ms": 1e3 * prefill_s,
        "token_ms": 1e3 * steps_s / num_steps,
        "tokens_per_s": batch_size * num_steps / steps_s,
        "encode_prefill_steps_s": [list(sample) for sample in samples],
    }


def _measure(shared: SharedModel, size: int, form: str, plan: Plan, budget: Budget) -> dict[str, Any]:
    """Measures all rows in turns. A row that failed to compile or ran out of time is left out, with the reason."""
    inputs = make_inputs(plan.config, size, device=plan.device, dtype=_DTYPE)
    watch = Stopwatch(plan.device)
    answerers: dict[Row, Answerer] = {}
    facts: dict[Row, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    unfinished = False
    for row in plan.rows:
        if budget.spent:
            left_out[str(row)], unfinished = f"the {plan.seconds:g} s of this stage were spent", True
            continue
        eager = Answerer(shared, row, inputs, watch, None)
        answerer, facts[row] = (eager, {}) if form == "eager" else _compiled_answerer(shared, row, inputs, watch, plan)
        if answerer is None:
            left_out[str(row)] = facts[row]["failures"][-1]
            continue
        answerers[row] = answerer
        facts[row] |= {"ids_as_eager": _share_equal(answerer.answer()[1], eager.answer()[1])}
    samples, peaks = _take_turns(answerers, plan, budget)
    rows = [{**speed(row, samples[row], size), **facts[row], "peak_gib": peaks[row]} for row in answerers]
    facts_of_all = {"batch_size": size, "compiled": form == "compiled", "unfinished": unfinished}
    return {**facts_of_all, "rows": rows, "left_out": left_out}


def _take_turns(
    answerers: dict[Row, Answerer], plan: Plan, budget: Budget
) -> tuple[dict[Row, list[Sample]], dict[Row, float | None]]:
    samples: dict[Row, list[Sample]] = {row: [] for row in answerers}
    peaks: dict[Row, float | None] = {}
    warmup, counted = plan.turns
    for turn in range(warmup + counted):
        for row, answerer in answerers.items():
            reset_peak(plan.device)
            sample, _ = answerer.answer()
            peaks[row] = peak_gib(plan.device)
            if turn >= warmup:
                samples[row].append(sample)
        if turn >= warmup and budget.spent:
            break
    return samples, peaks


def _compiled_answerer(
    shared: SharedModel, row: Row, inputs: Inputs, watch: Stopwatch, plan: Plan
) -> tuple[Answerer | None, dict[str, Any]]:
    """Returns one that has answered once, in the first mode that works; None: no mode works."""
    failures: list[str] = []
    for mode in _MODES:
        options: dict[str, Any] = {"backend": plan.compile_backend, **({} if plan.smallest else {"mode": mode})}
        try:
            answerer = Answerer(shared, row, inputs, watch, options)
            compile_s, _ = watch.time(answerer.answer)
        except RuntimeError as error:  # raised by dynamo, inductor and CUDA graphs
            failures.append(f"{options}: {first_line(error)}")
            continue
        return answerer, {"torch_compile": options, "first_answer_s": compile_s, "failures": failures}
    return None, {"failures": failures}


def _compiled_step(model: Blip3Video, options: dict[str, Any]) -> Step:
    compiled: Step = torch.compile(_step_of(model), fullgraph=True, dynamic=False, **options)

    def step(id_B: Tensor, cache: Cache) -> Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        next_B: Tensor = compiled(id_B, cache).clone()  # a CUDA graph writes its next output to the same place
        return next_B

    return step


def _step_of(model: Blip3Video) -> Step:
    language = model.lang_model

    def step(id_B: Tensor, cache: Cache) -> Tensor:
        out = language.model(inputs_embeds=language.embed(id_B[:, None]), past_key_values=cache, use_cache=True)
        next_B: Tensor = language.lm_head(out.last_hidden_state[:, -1]).argmax(dim=-1)
        return next_B

    return step


def _prefill(model: Blip3Video, inputs: Inputs, video_BMD: Tensor, cache: Cache | None) -> tuple[Tensor, Cache]:
    language = model.lang_model
    embeds_BSD = splice(language.embed(inputs.prompt()), inputs.position_B, video_BMD)
    out = language.model(inputs_embeds=embeds_BSD, past_key_values=cache, use_cache=True)
    return language.lm_head(out.last_hidden_state[:, -1]).argmax(dim=-1), out.past_key_values


def _continue(step: Step, id_B: Tensor, cache: Cache) -> Tensor:
    """All new ids (B, ANSWER_TOKENS), starting with the given ones."""
    ids = [id_B]
    while len(ids) < ANSWER_TOKENS:
        ids.append(step(ids[-1], cache))
    return torch.stack(ids, dim=1)


def _static_cache(model: Blip3Video, row: Row) -> StaticCache:
    """A cache for prompt and answer. Both fit the sliding window, so no layer needs a sliding cache."""
    config = copy.deepcopy(model.lang_model.model.config)
    length = QUESTION_TOKENS + row.num_video_tokens + ANSWER_TOKENS
    assert config.sliding_window is None or length <= config.sliding_window
    config.sliding_window = None
    return StaticCache(config=config, max_cache_len=length)


def _share_equal(ids_BT: Tensor, others_BT: Tensor) -> float:
    return float((ids_BT == others_BT).double().mean())
