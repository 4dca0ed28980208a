"""The stacks that are measured, by name, and beside which form of ours each is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["ANSWERS", "FOLDER", "OURS", "PARTS", "PEERS", "Peer", "Stack", "bits_of", "named", "parts_of"]

FOLDER = Path(__file__).parent
PARTS = ("decoder", "tower", "answer")
_PEER_PARTS = ("decoder", "tower")


@dataclass(frozen=True, kw_only=True)
class Peer:
    """A stack in one form."""

    what: str  # as the table says it
    file: Path  # the module, as ``protocol.py`` says
    requirements: str | None  # requirements/NAME.txt, and the environment's name; None: the runner's own environment
    form: str  # of the weights; peers of one module with the same form share what ``prepare`` writes
    engine: str  # how they are run
    bits: int  # of the weights, and so which of ours it is measured beside: ``OURS``
    parts: tuple[str, ...] = _PEER_PARTS


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A tower and a decoder of one stack, which together give an answer: the part ``answer``."""

    what: str
    tower: str  # names of ``PEERS``
    decoder: str


# Part and bits of a peer -> ours, on the back end that ``auto`` takes for this graph with both installed.
OURS = {
    "decoder": {32: "ours-fp16", 16: "ours-fp16", 8: "ours-int8", 4: "ours-int4"},
    "tower": {32: "ours-openvino-fp16", 16: "ours-openvino-fp16", 8: "ours-openvino-int8"},
    "answer": {8: "answer-ours-int8", 4: "answer-ours-int4"},
}


def _peer(module: str, requirements: str | None, form: str, engine: str, bits: int, what: str, *parts: str) -> Peer:
    file = FOLDER / f"{module}.py"
    return Peer(
        what=what,
        file=file,
        requirements=requirements,
        form=form,
        engine=engine,
        bits=bits,
        parts=parts or _PEER_PARTS,
    )


_GENAI, _LLAMA, _OPENVINO, _OPTIMUM = "peer_genai", "peer_llama_cpp", "peer_openvino_genai", "peer_optimum"
_LIBRARY = "peer_transformers"
_BF16 = "openvino:cpu-bf16"

PEERS = {
    "ours-fp16": _peer("ours", None, "fp16", "onnxruntime", 32, "blip3v fp16 (computed in fp32), ONNX Runtime"),
    "ours-int8": _peer("ours", None, "int8", "onnxruntime", 8, "blip3v int8, ONNX Runtime"),
    "ours-int4": _peer("ours", None, "int4", "onnxruntime", 4, "blip3v int4, ONNX Runtime", "decoder"),
    "ours-openvino-fp16": _peer("ours", None, "fp16", "openvino", 32, "blip3v fp16 (computed in fp32), OpenVINO"),
    "ours-openvino-int8": _peer("ours", None, "int8", "openvino", 8, "blip3v int8, OpenVINO"),
    "ours-openvino-int4": _peer("ours", None, "int4", "openvino", 4, "blip3v int4, OpenVINO", "decoder"),
    "ours-bf16": _peer("ours", None, "fp16", _BF16, 16, "blip3v fp16 (computed in bf16), OpenVINO"),
    "ours-bf16-int8": _peer("ours", None, "int8", _BF16, 8, "blip3v int8 (else bf16), OpenVINO"),
    "ours-cache-int8": _peer(
        "ours", None, "int8+kv-int8", "onnxruntime", 8, "blip3v int8, cache in int8, ONNX Runtime", "decoder"
    ),
    "ours-pair-int4": _peer(
        "ours", None, "int4", f"{_BF16}+onnxruntime", 4, "blip3v int4, prompts on OpenVINO in bf16", "decoder"
    ),
    "ours-int4-prompts-int8": _peer(
        *("ours", None, "int4", "onnxruntime:cpu-int8+onnxruntime", 4),
        *("blip3v int4, prompts in int8, ONNX Runtime", "decoder"),
    ),
    "ours-cache-int4": _peer(
        "ours", None, "int4+kv-int8", "onnxruntime", 4, "blip3v int4, cache in int8, ONNX Runtime", "decoder"
    ),
    "transformers-fp32": _peer(_LIBRARY, "transformers", "fp16", "fp32", 32, "transformers fp32, eager"),
    "transformers-compiled": _peer(_LIBRARY, "transformers", "fp16", "compiled", 32, "transformers fp32, compiled"),
    "transformers-bf16": _peer(_LIBRARY, "transformers", "fp16", "bf16", 16, "transformers bf16, eager"),
    "genai-int8": _peer(_GENAI, "genai", "int8", "cpu", 8, "onnxruntime-genai int8", "decoder"),
    "genai-int4": _peer(_GENAI, "genai", "int4", "cpu", 4, "onnxruntime-genai int4", "decoder"),
    "openvino-genai-int8": _peer(_OPENVINO, "openvino_genai", "int8", "default", 8, "OpenVINO GenAI int8", "decoder"),
    "openvino-genai-int8-f32": _peer(
        _OPENVINO, "openvino_genai", "int8", "f32", 8, "OpenVINO GenAI int8, precision hint f32", "decoder"
    ),
    "openvino-nncf-int8": _peer(
        _OPENVINO, "openvino_genai", "tower-int8", "default", 8, "OpenVINO int8, quantised by nncf", "tower"
    ),
    "openvino-nncf-int8-f32": _peer(
        _OPENVINO, "openvino_genai", "tower-int8", "f32", 8, "OpenVINO int8, quantised by nncf, hint f32", "tower"
    ),
    "openvino-genai-int4": _peer(_OPENVINO, "openvino_genai", "int4", "default", 4, "OpenVINO GenAI int4", "decoder"),
    "openvino-genai-int4-f32": _peer(
        _OPENVINO, "openvino_genai", "int4", "f32", 4, "OpenVINO GenAI int4, precision hint f32", "decoder"
    ),
    "llama-cpp-q8_0": _peer(_LLAMA, "llama_cpp", "q8_0", "cpu", 8, "llama.cpp q8_0", "decoder"),
    "llama-cpp-q4_0": _peer(_LLAMA, "llama_cpp", "q4_0", "cpu", 4, "llama.cpp q4_0", "decoder"),
    "optimum-fp32": _peer(_OPTIMUM, "optimum", "fp32", "onnxruntime", 32, "optimum's ONNX export, fp32", "decoder"),
}

# A stack in 4 bits has its tower in int8, as ours has. OpenVINO's own hint is not the faster one for a token here.
_MIXED = "tower in bf16, decoder with hint f32"
ANSWERS = {
    "answer-ours-int8": Stack(what="blip3v int8", tower="ours-bf16-int8", decoder="ours-int8"),
    "answer-openvino-int8": Stack(
        what="OpenVINO int8: nncf and GenAI", tower="openvino-nncf-int8", decoder="openvino-genai-int8"
    ),
    "answer-openvino-int8-mixed": Stack(
        what=f"OpenVINO int8, {_MIXED}", tower="openvino-nncf-int8", decoder="openvino-genai-int8-f32"
    ),
    "answer-ours-int4": Stack(what="blip3v int4", tower="ours-bf16-int8", decoder="ours-int4"),
    "answer-ours-cache-int4": Stack(
        what="blip3v int4, cache in int8", tower="ours-bf16-int8", decoder="ours-cache-int4"
    ),
    "answer-ours-int4-prompts-int8": Stack(
        what="blip3v int4, prompts in int8", tower="ours-bf16-int8", decoder="ours-int4-prompts-int8"
    ),
    "answer-openvino-int4": Stack(
        what="OpenVINO int4: nncf and GenAI", tower="openvino-nncf-int8", decoder="openvino-genai-int4"
    ),
    "answer-openvino-int4-mixed": Stack(
        what=f"OpenVINO int4, {_MIXED}", tower="openvino-nncf-int8", decoder="openvino-genai-int4-f32"
    ),
}


def named(name: str) -> Peer | Stack:
    """What a name of ``PEERS`` or ``ANSWERS`` stands for."""
    return PEERS[name] if name in PEERS else ANSWERS[name]


def parts_of(name: str) -> tuple[str, ...]:
    """The parts that are measured of it."""
    return PEERS[name].parts if name in PEERS else ("answer",)


def bits_of(name: str) -> int:
    """Bits of its weights; of a stack, its decoder's."""
    return PEERS[name].bits if name in PEERS else PEERS[ANSWERS[name].decoder].bits
