"""Small random models and their exported graphs. Weights differ in every layer."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from blip3v.bundle.graph_io import past_key, past_value, present_key, present_value
from blip3v.bundle.precision import PRECISIONS
from blip3v.config import ModelConfig, TextConfig, preset
from blip3v.export.to_onnx import decoder_to_onnx, save_graph, video_encoder_to_onnx
from blip3v.model import Blip3Video
from blip3v.model.folder import save_model_folder
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import random_model
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video import PreprocessorConfig

TEXTS = ["Which way does the red circle turn?", "The blue square moves to the left, then up.", "left right up down"]
FloatArray = NDArray[np.float32]
# TextConfig settings of one of the tests' decoders: few KV heads, and a window shorter than the prompt.
WINDOWED = {"sliding_window": 8, "num_kv_heads": 2}


def small_config(encoder: str = "tokenlearner", **text: object) -> ModelConfig:
    """The tiny preset with fewer layers, so that an export takes seconds."""
    tiny = preset("tiny")
    small = dataclasses.replace(
        tiny,
        vision=dataclasses.replace(tiny.vision, image_size=32, num_layers=2),
        text=dataclasses.replace(tiny.text, num_layers=2, **text),  # type: ignore[arg-type]
    )
    return with_encoder(small, encoder)


def write_folder(path: Path, config: ModelConfig, seed: int = 0, model: Blip3Video | None = None) -> Path:
    save_model_folder(
        path,
        model or random_model(config, seed=seed),
        train_tokenizer(TEXTS * 3, vocab_size_base=config.text.num_base_tokens).to_str(),
        PreprocessorConfig(image_size=config.vision.image_size),
        GenerationConfig(system_prompt=None, max_new_tokens=16),
        RELEASED_TEMPLATE,
        dtype=torch.float32,
    )
    return path


@dataclass(frozen=True)
class Exported:
    """A graph on disk and the model that it was made from."""

    path: Path
    model: Blip3Video

    def session(self) -> Any:
        return onnxruntime.InferenceSession(self.path, providers=["CPUExecutionProvider"])


@functools.cache
def export_video_encoder(base: Path, encoder: str, precision: str) -> Exported:
    """The exported video encoder, made once per session; ``base`` is the session's temporary folder."""
    model = random_model(small_config(encoder))
    path = _new_folder(base / f"graph-{encoder}-{precision}") / "video_encoder.onnx"
    spec = PRECISIONS[precision].video_encoder
    save_graph(video_encoder_to_onnx(model.config, model.state_dict(), spec), path)
    return Exported(path, model)


@functools.cache
def export_decoder(base: Path, kind: str) -> Exported:
    """The exported decoder, fp32, fp16 or windowed (fp32), made once per session; ``base`` as above."""
    config = small_config("tokenlearner", **(WINDOWED if kind == "windowed" else {}))
    model = random_model(config)
    path = _new_folder(base / f"graph-decoder-{kind}") / "decoder.onnx"
    spec = PRECISIONS["fp16" if kind == "fp16" else "fp32"].decoder
    save_graph(decoder_to_onnx(config, model.state_dict(), spec), path)
    return Exported(path, model)


def _new_folder(path: Path) -> Path:
    path.mkdir()
    return path


def embeddings(text: TextConfig, *lead: int, seed: int = 0) -> FloatArray:
    """Random inputs of the decoder, (*lead, D)."""
    return np.random.default_rng(seed).normal(0, 0.5, (*lead, text.hidden_size)).astype(np.float32)


def uncached_logits(model: Blip3Video, embeds_LD: FloatArray) -> FloatArray:
    """Logits (L, V) of the transformers library's Phi-3 for all positions at once."""
    with torch.inference_mode():
        logits_LV: FloatArray = model.lang_model(torch.from_numpy(embeds_LD)[None])[0].numpy()
    return logits_LV


class SharedBuffers:
    """The decoder graph with past and present bound to the same memory, as in the runtime."""

    def __init__(self, session: Any, text: TextConfig, rows: int, capacity: int, dtype: str = "float32") -> None:
        self._session, self._rows, self._dtype = session, rows, dtype
        shape = (rows, text.num_kv_heads, capacity, text.head_dim)
        self.caches = {name: np.zeros(shape, dtype) for i in range(text.num_layers) for name in _names(i)}
        self._num_logits = text.num_logits

    def __call__(self, embeds_BtD: FloatArray, lengths: list[int], logits_index: list[int]) -> FloatArray:
        """Logits (B, V) of one position; ``lengths`` are the valid tokens of each row after this call."""
        return self.several(embeds_BtD, lengths, [[index] for index in logits_index])[:, 0]

    def several(self, embeds_BtD: FloatArray, lengths: list[int], logits_index: list[list[int]]) -> FloatArray:
        """Logits (B, n, V) of n positions of each row."""
        binding = self._session.io_binding()
        logits_BnV = np.full((self._rows, len(logits_index[0]), self._num_logits), np.nan, np.float32)
        inputs = {
            "inputs_embeds": embeds_BtD.astype(self._dtype),
            "logits_index": np.array(logits_index, np.int64),
            "seqlens_k": np.array(lengths, np.int32) - np.int32(1),
            "total_sequence_length": np.array(max(lengths), np.int32),
        }
        values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("logits", onnxruntime.OrtValue.ortvalue_from_numpy(logits_BnV))
        shared = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in self.caches.items()}
        for name, value in shared.items():
            binding.bind_ortvalue_input(name, value)
            binding.bind_ortvalue_output(name.replace("past", "present"), value)
        self._session.run_with_iobinding(binding)
        return logits_BnV


def _names(layer: int) -> tuple[str, str]:
    assert present_key(layer) == past_key(layer).replace("past", "present")
    assert present_value(layer) == past_value(layer).replace("past", "present")
    return past_key(layer), past_value(layer)
