"""What the stages of one row of a measurement have to do, from its bundle and its engines."""

from __future__ import annotations

from dataclasses import dataclass

from blip3v.bench.arithmetic import prefill_operations, step_bytes, video_encoder_operations
from blip3v.bench.gemm_graphs import GemmKind
from blip3v.bundle import Bundle
from blip3v.bundle.precision import ITEM_BYTES, GraphPrecision
from blip3v.runtime import BackendReport, Execution
from blip3v.runtime.backends import get_backend
from blip3v.runtime.opening import graph_files

__all__ = ["Work", "work_of"]

# Format of the weights -> the product that a CPU computes with them. Halves are widened.
_KINDS: dict[str, GemmKind] = {
    "float32": "float32",
    "float16": "float32",
    "int8": "int8",
    "int8-block": "int8-block",
    "int4-block": "int4-block",
}


@dataclass(frozen=True, kw_only=True)
class Work:
    """Of one turn, which may be a batch."""

    video_encoder_operations: int | None  # None: its temporal encoder is of another package
    video_encoder_kind: GemmKind | None  # most of its products; None: not computed on a CPU
    prefill_operations: int
    decoder_kind: GemmKind | None
    step_bytes: int  # weights as the engine holds them, keys and values, in the middle of the answer


def work_of(
    bundle: Bundle, backend: BackendReport, *, prompt_tokens: int, new_tokens: int, batch_size: int = 1
) -> Work:
    """The work of a row.

    Args:
        bundle: what is measured.
        backend: the engines that compute it.
        prompt_tokens: before each answer, video tokens included.
        new_tokens: of each answer.
        batch_size: answers of a turn.
    """
    config, precision = bundle.config, bundle.manifest.precision
    clip = video_encoder_operations(config)
    kv_bytes = get_backend(backend.decoder.backend).kv_bytes_per_token(config.text, graph_files(bundle)["decoder"])
    return Work(
        video_encoder_operations=None if clip is None else batch_size * clip,
        video_encoder_kind=_kind(backend.video_encoder, precision.video_encoder),
        prefill_operations=batch_size * prefill_operations(config.text, prompt_tokens),
        decoder_kind=_kind(backend.decoder, precision.decoder),
        step_bytes=step_bytes(
            _held_weights_bytes(bundle, backend.decoder),
            kv_bytes,
            num_tokens=prompt_tokens + new_tokens // 2,
            window=config.text.sliding_window,
            batch_size=batch_size,
        ),
    )


def _kind(execution: Execution, precision: GraphPrecision) -> GemmKind | None:
    return _KINDS.get(precision.weights) if execution.device == "CPU" else None


def _held_weights_bytes(bundle: Bundle, execution: Execution) -> int:
    """The decoder's weights without its rotation tables, of which a step reads one row."""
    text, precision = bundle.config.text, bundle.manifest.precision.decoder
    tables = text.max_context * text.head_dim * ITEM_BYTES[precision.io]
    stored = bundle.manifest.weights_bytes("decoder") - tables
    # ONNX Runtime has no fp16 product on a CPU and keeps a widened copy; OpenVINO widens as it multiplies.
    widened = execution.backend == "onnxruntime" and precision.weights == "float16"
    return stored * 2 if widened else stored
