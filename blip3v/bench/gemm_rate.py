"""How fast the installed engines multiply matrices on this CPU, opened as they open a bundle's graphs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blip3v.bench.gemm_graphs import INPUT, GemmKind, gemm_graph
from blip3v.bundle.graph_io import GraphIO
from blip3v.bundle.precision import PRECISIONS
from blip3v.runtime.backends import GraphFile

__all__ = ["ENGINES", "gemm_rate"]

# As wide as the layers of a small language model, and enough rows to be bound by arithmetic.
_M, _K, _N = 512, 2048, 2048
_OPERATIONS = 2 * _M * _K * _N
_WARMUP, _LEAST_RUNS, _MEASURE_S = 2, 3, 0.3
_PRECISIONS = {"float32": "fp32", "int8": "int8", "int8-block": "int8-weight", "int4-block": "int4"}


def gemm_rate(engine: str, kind: GemmKind, threads: int | None) -> float:
    """Operations per second of the best of several products; a multiplication and an addition are two.

    Args:
        engine: a key of ``ENGINES``, installed.
        kind: how the constant factor is stored; the inputs are fp32, rounded inside the product as in a bundle.
        threads: inside the operator; None: one for each physical core.

    Raises:
        Exception: whatever the engine raises for a graph that it cannot compute.
    """
    run = ENGINES[engine](gemm_graph(kind, _M, _K, _N), kind, threads)
    for _ in range(_WARMUP):
        run()
    best_s, num_runs, end_s = float("inf"), 0, time.perf_counter() + _MEASURE_S
    while num_runs < _LEAST_RUNS or time.perf_counter() < end_s:
        start_s = time.perf_counter()
        run()
        best_s = min(best_s, time.perf_counter() - start_s)
        num_runs += 1
    return _OPERATIONS / best_s


def _on_onnxruntime(model: bytes, kind: GemmKind, threads: int | None) -> Callable[[], object]:
    from blip3v.runtime.onnxruntime_graph import CPU_PROVIDER, load_onnxruntime, session_options

    session = load_onnxruntime().InferenceSession(model, session_options(threads), providers=[CPU_PROVIDER])
    inputs = {INPUT: _inputs()}
    return lambda: session.run(None, inputs)


def _on_openvino(model: bytes, kind: GemmKind, threads: int | None) -> Callable[[], object]:
    from blip3v.runtime.backends.openvino.sessions import open_core  # imports OpenVINO

    precision = PRECISIONS[_PRECISIONS[kind]].decoder
    core = open_core(GraphFile(path=Path(), io=GraphIO((), ()), precision=precision, weights_bytes=0), threads)
    request: Any = core.compile_model(core.read_model(model), "CPU").create_infer_request()
    inputs = {INPUT: _inputs()}
    return lambda: request.infer(inputs, share_inputs=True)


# Back end -> what opens a graph and returns a function that runs it once. Those that run on a CPU.
ENGINES: dict[str, Callable[[bytes, GemmKind, int | None], Callable[[], object]]] = {
    "onnxruntime": _on_onnxruntime,
    "openvino": _on_openvino,
}


def _inputs() -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(1).uniform(-1, 1, (_M, _K)).astype(np.float32)
