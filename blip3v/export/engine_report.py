"""What a built engine says of itself: what its layers compute and how, and its memory. Reading one needs its GPU."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from blip3v.bundle.engines import EngineRecord, engine_file
from blip3v.errors import BackendError
from blip3v.publishing import write_file
from blip3v.runtime.tensorrt_library import TensorRT, context_bytes
from blip3v.runtime.tensorrt_log import tensorrt_log
from blip3v.strict_json import dumps

__all__ = ["layer_report", "layers_file", "no_report", "read_engine", "write_layer_reports"]


def layers_file(graph: str) -> str:
    """Name of a graph's layer report, beside its engine."""
    return f"{graph}.layers.json"


def no_report(record: EngineRecord, capability: str | None) -> str | None:
    """Why this machine cannot read the engines that it builds; None if it can.

    Args:
        record: of the engines.
        capability: compute capability of this machine's GPU; None: it has none.
    """
    if capability is None:
        return "an engine can only be read with a GPU, and this machine has no CUDA driver"
    if capability not in record.compute_capabilities:
        built = ", ".join(record.compute_capabilities)
        return f"this machine's GPU has compute capability {capability}; the engines are for {built}"
    return None


def write_layer_reports(tensorrt: TensorRT, folder: Path, record: EngineRecord) -> EngineRecord:
    """Writes the layer report of every engine in ``folder``, which this machine's GPU has to be able to read.

    Returns:
        The record, with the memory that each engine says its contexts take: one for each profile.

    Raises:
        BackendError: TensorRT cannot read an engine that it has just built.
    """
    graphs = {}
    for graph, built in record.graphs.items():
        engine = read_engine(tensorrt, folder / engine_file(graph), version_compatible=record.version_compatible)
        write_file(folder / layers_file(graph), dumps(layer_report(tensorrt, engine)))
        graphs[graph] = dataclasses.replace(built, activation_bytes=context_bytes(engine))
    return dataclasses.replace(record, graphs=graphs)


def layer_report(tensorrt: TensorRT, engine: Any) -> Any:
    """Every layer of an engine with its precision and tactic, as the inspector's JSON describes it."""
    inspector = engine.create_engine_inspector()
    return json.loads(inspector.get_engine_information(tensorrt.module.LayerInformationFormat.JSON))


def read_engine(tensorrt: TensorRT, engine: Path, *, version_compatible: bool = False) -> Any:
    """The engine, read to be asked about.

    Args:
        tensorrt: the library that built it.
        engine: the file, which is mapped.
        version_compatible: whether the engine was built to be; it then holds code of TensorRT, which is run.

    Raises:
        BackendError: TensorRT cannot read the engine.
    """
    trt, log = tensorrt.module, tensorrt_log(tensorrt.module)
    log.forget()
    runtime = trt.Runtime(log.logger)
    if version_compatible:
        runtime.engine_host_code_allowed = True
    opened = runtime.deserialize_cuda_engine(np.memmap(engine, np.uint8, "r"))
    if opened is None:
        raise BackendError(f"{tensorrt.name} cannot read {engine}: {log.reasons()}; run `blip3v doctor`")
    return opened
