"""Stage ``parity``: every encoder on the device in fp32, fp16 and bf16, against fp32.

Two shapes: all of ``tiny``, whose fp32 is compared with the CPU's; and the resampler with its temporal encoder at full
width, compared with the device's fp32.
"""

# Shapes: B clips, T frames, P patches, D width.

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from blip3v.bench.training.random_model import make, row_config
from blip3v.bench.training.rows import Row
from blip3v.config import ModelConfig, preset
from blip3v.errors import ConfigError
from blip3v.model import Blip3Video
from blip3v.model.resampler import PerceiverResampler
from blip3v.model.temporal import encoder_names, with_encoder
from scripts.gpu.models import Inputs, make_inputs
from scripts.gpu.plan import Budget, Plan
from scripts.gpu.report import Report

__all__ = ["TOLERANCES", "Tolerance", "compare", "parity", "parity_rows"]

_COUNTS = (16, 32, 128, 256)  # the paper's
_BATCH = 2
_CPU = torch.device("cpu")

Outputs = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far a dtype may be from fp32."""

    relative_error: float  # largest absolute difference over the largest absolute value of fp32
    cosine: float  # at least
    reason: str


TOLERANCES = {
    torch.float32: Tolerance(
        relative_error=1e-3, cosine=0.9999, reason="the same sums in another order; products of 24 bits, no TF32"
    ),
    torch.float16: Tolerance(
        relative_error=2e-2, cosine=0.999, reason="11 bits: 5e-4 at each rounding, growing over the layers"
    ),
    torch.bfloat16: Tolerance(
        relative_error=1e-1, cosine=0.995, reason="8 bits: 4e-3 at each rounding, eight times that of fp16"
    ),
}


def parity(plan: Plan, report: Report) -> None:
    """Compares every row that is not in the report yet."""
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32 in the patch convolution too
    budget = Budget(plan.seconds)
    report.describe("parity", "tolerances", {_name(dtype): asdict(limit) for dtype, limit in TOLERANCES.items()})
    report.describe("parity", "shapes", {"tiny": "the whole model", "resampler": f"as in {plan.config.name}"})
    for row in parity_rows(preset("tiny"), usual_only=plan.smallest):
        for shape, measure in (("tiny", _whole_tiny), ("resampler", _resampler_alone)):
            key = f"{row}, {shape}"
            if shape == "resampler" and not _admits(plan.config, row.encoder, row.num_video_tokens):
                continue  # a count that follows from tiny's patches
            if report.holds("parity", key):
                continue
            if budget.spent:
                report.skip("parity", key, f"the {plan.seconds:g} s of this stage were spent")
                continue
            comparisons = measure(row, plan)
            passed = all(comparison["passed"] for comparison in comparisons)
            report.put("parity", key, {"passed": passed, "comparisons": comparisons})


def parity_rows(config: ModelConfig, *, usual_only: bool = False) -> list[Row]:
    """Every encoder at its usual count, and at each of the paper's counts that it supports."""
    rows = []
    for encoder in encoder_names():
        usual = with_encoder(config, encoder).num_video_tokens
        counts = {usual} if usual_only else {usual, *_COUNTS}
        rows += [Row(encoder, count) for count in sorted(counts) if _admits(config, encoder, count)]
    return rows


def compare(got: Tensor, want: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    """Measures ``got`` against ``want`` in float64; non-finite values never pass."""
    ours, theirs = got.double().flatten().cpu(), want.double().flatten().cpu()
    error = float((ours - theirs).abs().max() / theirs.abs().max())
    cosine = float(torch.nn.functional.cosine_similarity(ours, theirs, dim=0))
    limit = TOLERANCES[dtype]
    finite = math.isfinite(error) and math.isfinite(cosine)
    return {
        "relative_error": error if finite else None,
        "cosine": cosine if finite else None,
        "passed": finite and error <= limit.relative_error and cosine >= limit.cosine,
    }


def _whole_tiny(row: Row, plan: Plan) -> list[dict[str, Any]]:
    config = row_config(preset("tiny"), row)
    model = make(lambda: Blip3Video(config), device=_CPU, dtype=torch.float32).eval()
    inputs = make_inputs(config, _BATCH, device=_CPU, dtype=torch.float32)
    want = _tiny_outputs(model, inputs, _CPU, torch.float32)
    found = []
    for dtype in TOLERANCES:
        got = _tiny_outputs(_variant(model, plan, dtype), inputs, plan.device, dtype)
        against = "fp32 on the CPU" if dtype is torch.float32 else f"fp32 on {plan.device.type}"
        found += _compare_all(got, want, dtype, against)
        if dtype is torch.float32:
            want = got  # just compared with the CPU
    return found


def _resampler_alone(row: Row, plan: Plan) -> list[dict[str, Any]]:
    config = row_config(plan.config, row)
    resampler = make(lambda: PerceiverResampler(config), device=plan.device, dtype=torch.float32).eval()
    generator = torch.Generator(plan.device).manual_seed(1)
    shape = (1, config.num_frames, config.vision.num_patches, config.vision.hidden_size)
    patches_BTPD = torch.randn(shape, generator=generator, device=plan.device)
    want = _resampler_outputs(resampler, patches_BTPD)
    found = []
    for dtype in (torch.float16, torch.bfloat16):
        got = _resampler_outputs(_variant(resampler, plan, dtype), patches_BTPD.to(dtype))
        found += _compare_all(got, want, dtype, f"fp32 on {plan.device.type}")
    return found


def _compare_all(got: Outputs, want: Outputs, dtype: torch.dtype, against: str) -> list[dict[str, Any]]:
    where = {"dtype": _name(dtype), "against": against}
    return [{"output": name, **where, **compare(got[name], want[name], dtype)} for name in want]


@torch.inference_mode()
def _tiny_outputs(model: Blip3Video, inputs: Inputs, device: torch.device, dtype: torch.dtype) -> Outputs:
    watched = {"temporal": model.vision_tokenizer.temporal_encoder, "video_tokens": model.vision_tokenizer}
    with _recorded(watched) as outputs:
        outputs["vision"] = features = model.features(inputs.frames_BTCHW.to(device, dtype))
        video = model.vision_tokenizer(features)
        outputs["logits"] = model(inputs.prompt().to(device), inputs.position_B.to(device), video)
    return outputs


@torch.inference_mode()
def _resampler_outputs(resampler: PerceiverResampler, patches_BTPD: Tensor) -> Outputs:
    with _recorded({"temporal": resampler.temporal_encoder, "video_tokens": resampler}) as outputs:
        resampler(patches_BTPD)
    return outputs


@contextmanager
def _recorded(modules: dict[str, nn.Module]) -> Iterator[Outputs]:
    """Records the output of each module inside the block."""
    outputs: Outputs = {}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, arguments, output: outputs.__setitem__(name, output)

    hooks = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _variant(module: nn.Module, plan: Plan, dtype: torch.dtype) -> Any:
    """A copy on the device in ``dtype``, with the noise set in the plan."""
    copied = copy.deepcopy(module).to(plan.device)
    for weight in copied.parameters() if plan.perturb else ():
        weight.mul_(1.0 + plan.perturb * torch.randn_like(weight))
    buffers = {name: buffer for name, buffer in copied.named_buffers() if buffer.is_floating_point()}
    copied.to(dtype)
    for name, buffer in buffers.items():  # frequency tables are useless in half precision
        owner, _, last = name.rpartition(".")
        setattr(copied.get_submodule(owner), last, buffer)
    return copied


def _admits(config: ModelConfig, encoder: str, num_video_tokens: int) -> bool:
    try:
        with_encoder(config, encoder, num_video_tokens=num_video_tokens)
    except ConfigError:
        return False
    return True


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
