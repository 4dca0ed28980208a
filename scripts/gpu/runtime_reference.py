"""What the fp32 PyTorch reference says to a bundle's frames and question, and how far a bundle may be from it."""

# Shapes: M video tokens, D width, L prompt tokens, N positions, V logits.

from __future__ import annotations

import dataclasses
import gc
import math
from typing import Any, NamedTuple

import numpy as np
import torch

from blip3v.bundle.precision import GraphPrecision, Precision, Tolerance
from blip3v.export.parity import Comparison, count_tokens
from blip3v.export.parity import compare as compared
from blip3v.model.generate import greedy
from blip3v.model.weights import empty_model, fill
from scripts.gpu.plan import Plan
from scripts.gpu.runtime_bundles import Bundles
from scripts.gpu.runtime_worker import Outputs

__all__ = ["Reference", "compare", "reference_of", "tolerances"]

_NUM_STEPS = 16  # tokens that are fed back
# Of weights rounded to the nearest value, on random weights; a wrong scale or layout is far outside.
_INT8 = Tolerance(relative_error=0.2, cosine=0.98, reason="8 bits: about 0.05 on tiny, growing with the depth")
_INT4 = Tolerance(relative_error=0.7, cosine=0.85, reason="4 bits, without calibrated rounding: about 0.4 on tiny")


class Reference(NamedTuple):
    """The reference's outputs."""

    outputs: Outputs
    token_ids: list[int]  # N - 1: what it answers, which is fed to every bundle


def reference_of(bundles: Bundles, plan: Plan) -> Reference:
    """Runs the reference on the plan's device, in fp32 without TF32, and frees its memory."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    model = empty_model(bundles.config)
    fill(model, bundles.source.weights)
    model.to(plan.device)
    prompt = bundles.prompt
    ids_1L = torch.tensor([list(prompt.ids)], device=plan.device)
    position_1 = torch.tensor([prompt.image_position], device=plan.device)
    with torch.inference_mode():
        video_1MD = model.encode_video(torch.from_numpy(bundles.pixels)[None].to(plan.device))
        (token_ids,) = greedy(model, ids_1L, position_1, video_1MD, max_new_tokens=_NUM_STEPS, stop_id=None)
        answer_1N = torch.tensor([token_ids], device=plan.device)
        logits_1SV = model(torch.cat((ids_1L, answer_1N), dim=1), position_1, video_1MD)
    logits_NV = logits_1SV[0, -(_NUM_STEPS + 1) :].float().cpu().numpy()
    outputs = Outputs(video_1MD[0].float().cpu().numpy(), logits_NV)
    del model, video_1MD, logits_1SV
    if plan.device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
    return Reference(outputs, token_ids)


def tolerances(precision: Precision) -> dict[str, Tolerance]:
    """The tolerance of each output; logits come from the video encoder's tokens too, so they get the wider one."""
    own = {name: _tolerance(spec) for name, spec in precision.graphs.items()}
    widest = max(own.values(), key=lambda tolerance: tolerance.relative_error)
    return {"video_tokens": own["video_encoder"], "logits": widest}


def _tolerance(spec: GraphPrecision) -> Tolerance:
    if not spec.is_quantized:
        return spec.tolerance
    return _INT4 if spec.weights.startswith("int4") else _INT8


def compare(got: Outputs, reference: Reference, precision: Precision) -> dict[str, Any]:
    """Measures what a bundle returned against the reference; the result holds ``passed``."""
    limits, want = tolerances(precision), reference.outputs
    with np.errstate(invalid="ignore", over="ignore"):  # an overflow is a miss, not a warning
        rows = [
            compared(name, "the film", ours, theirs, limits["video_tokens" if name == "video_tokens" else "logits"])
            for name, ours, theirs in (
                ("video_tokens", got.video_MD, want.video_MD),
                ("prefill", got.logits_NV[0], want.logits_NV[0]),
                ("steps", got.logits_NV[1:], want.logits_NV[1:]),
            )
        ]
    tokens = count_tokens(list(got.logits_NV), list(want.logits_NV), limits["logits"])
    return {
        "passed": all(row.passed for row in rows) and not tokens.differing,
        "tolerances": {name: dataclasses.asdict(limit) for name, limit in limits.items()},
        "comparisons": [_plain(row) for row in rows],
        "tokens": dataclasses.asdict(tokens),
    }


def _plain(row: Comparison) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    values = {"relative_error": row.relative_error, "cosine": row.cosine}
    finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
    return {"output": row.stage, **finite, "passed": row.passed}
