"""Two small bundles, exported once: the baseline without a temporal encoder, and an untrained one of 16 tokens."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

from bench_samples import SMALL_ROWS

from blip3v.bench import default_bundles
from blip3v.config import ModelConfig, preset
from blip3v.data.samples import film_texts
from blip3v.model.folder import save_model_folder
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import random_model
from blip3v.text import RELEASED_TEMPLATE, GenerationConfig, train_tokenizer
from blip3v.video import PreprocessorConfig


@dataclass(frozen=True)
class SmallBundles:
    """What was exported, and from what."""

    models: Path  # folder of tiny-none and tiny-tokenlearner with one layer each and random weights
    cache: Path  # folder that holds the bundles
    paths: list[Path]  # in the order of SMALL_ROWS


@functools.cache
def film_tokenizer_json() -> str:
    return train_tokenizer(film_texts(60), vocab_size_base=preset("tiny").text.num_base_tokens).to_str()


@functools.cache
def small_bundles(base: Path) -> SmallBundles:
    """Exports them to ``base``, the session's temporary folder; once per session."""
    models, cache = base / "bench-models", base / "bench-cache"
    for encoder in ("none", "tokenlearner"):
        config = _small(with_encoder(preset("tiny"), encoder))
        save_model_folder(
            models / f"tiny-{encoder}",
            random_model(config),
            film_tokenizer_json(),
            PreprocessorConfig(image_size=config.vision.image_size),
            GenerationConfig(system_prompt=None, max_new_tokens=8),
            RELEASED_TEMPLATE,
        )
    return SmallBundles(models, cache, default_bundles(cache, models=models, rows=SMALL_ROWS))


def _small(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(
        config,
        vision=dataclasses.replace(config.vision, image_size=32, num_layers=1),
        resampler=dataclasses.replace(config.resampler, depth=1),
        text=dataclasses.replace(config.text, num_layers=1),
    )
