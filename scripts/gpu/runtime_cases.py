"""What stage ``runtime`` measures: each case is a back end with a precision and a target."""

from __future__ import annotations

from typing import NamedTuple

from blip3v.bundle.precision import Precision
from blip3v.bundle.target_precision import for_target
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.errors import Blip3vError
from blip3v.runtime.backends import AUTO, GRAPHS, choose_backend
from blip3v.runtime.tensorrt_library import library_of, load_tensorrt
from scripts.gpu.plan import Plan

__all__ = ["Case", "cases", "refusal"]

# Most worth knowing first: time may end.
_CUDA_RUNS = ("fp16+kv-int8", "video_encoder=int8-weight,decoder=fp16", "video_encoder=fp32,decoder=fp16")
_CUDA_REFUSES = ("fp32", "int8", "int8-weight", "int4")
_NEW_OPERATORS: tuple[Target, ...] = ("tensorrt", "tensorrt-rtx")
_QUANTIZED = ("int8", "int8-weight", "int4")


class Case(NamedTuple):
    """One measurement."""

    backend: str
    precision: str
    target: Target = DEFAULT_TARGET

    def __str__(self) -> str:
        return f"{self.backend}, {self.precision}{'' if self.target == DEFAULT_TARGET else f', {self.target}'}"


def cases(plan: Plan) -> list[Case]:
    """All cases for the plan's device. The first that runs is what the others are compared with in speed."""
    if plan.device.type == "cpu":
        return [Case(name, precision) for precision in ("fp16", "int8") for name in ("onnxruntime", "openvino")]
    return [
        Case("onnxruntime-cuda", "fp16"),
        *(Case("tensorrt", "fp16", target) for target in _NEW_OPERATORS),
        *(Case("onnxruntime-cuda", precision) for precision in (*_CUDA_RUNS, *_CUDA_REFUSES)),
        *(Case("tensorrt", precision, target) for precision in _QUANTIZED for target in _NEW_OPERATORS),
        *(Case("tensorrt", precision, "tensorrt-legacy") for precision in ("fp16", "int8")),
        Case("openvino:gpu", "fp16"),
    ]


def refusal(case: Case) -> str | None:
    """Why a case does not run here, in the library's own words; None: nothing speaks against it."""
    try:
        precision = for_target(Precision.parse(case.precision), case.target)
        if is_tensorrt(case.target):
            load_tensorrt(library_of(case.target))
        for graph in GRAPHS:
            choose_backend(case.backend, graph, AUTO, case.target, precision.graphs[graph])
    except Blip3vError as error:
        return str(error)
    return None
