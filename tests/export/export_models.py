"""Small random model folders. Weights differ in every layer, so that a layer bound to the wrong place shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from blip3v.config import ModelConfig, preset
from blip3v.model import Blip3Video
from blip3v.model.folder import save_model_folder
from blip3v.text.generation import GenerationConfig
from blip3v.text.template import RELEASED_TEMPLATE
from blip3v.text.train_tokenizer import train_tokenizer
from blip3v.video.preprocess import PreprocessorConfig

TEXTS = ["Which way does the red circle turn?", "The blue square moves to the left, then up.", "left right up down"]


def small_config(encoder: str = "tokenlearner", **text: object) -> ModelConfig:
    """The tiny preset with fewer layers, so that an export takes seconds."""
    tiny = preset("tiny").with_encoder(encoder)
    return dataclasses.replace(
        tiny,
        vision=dataclasses.replace(tiny.vision, image_size=32, num_layers=2),
        text=dataclasses.replace(tiny.text, num_layers=2, **text),  # type: ignore[arg-type]
    )


def random_model(config: ModelConfig, seed: int = 0) -> Blip3Video:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Blip3Video(config).eval().requires_grad_(False)


def write_folder(path: Path, config: ModelConfig, seed: int = 0, model: Blip3Video | None = None) -> Path:
    save_model_folder(
        path,
        model or random_model(config, seed),
        train_tokenizer(TEXTS * 3, vocab_size_base=config.text.num_base_tokens).to_str(),
        PreprocessorConfig(image_size=config.vision.image_size),
        GenerationConfig(system_prompt=None, max_new_tokens=16),
        RELEASED_TEMPLATE,
        dtype=torch.float32,
    )
    return path
