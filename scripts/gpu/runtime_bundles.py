"""Bundles of one model with random weights, and what they are asked. PyAV is not needed: films are rendered."""

# Shapes: T frames, H height, W width, S side.

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bench.measure import question_of_length
from blip3v.bench.training.random_model import row_config
from blip3v.bench.training.rows import ROWS
from blip3v.bundle.precision import Precision
from blip3v.bundle.reader import open_bundle
from blip3v.calibration.collect import calibrate
from blip3v.calibration.data import film_clips
from blip3v.data.film import make_film
from blip3v.data.samples import film_frames
from blip3v.errors import ArtifactError
from blip3v.export import ExportSource, export_bundle, random_source
from blip3v.export.cache_scales import prompt_cache_scales
from blip3v.export.clip import ParityClip
from blip3v.export.decoder_graph import CacheScales
from blip3v.export.quantization import QuantizationOptions
from blip3v.model.language import embedding_table
from blip3v.text import Message, Prompt, build_prompt
from blip3v.text.tokenizer import Tokenizer
from blip3v.video import load_clip, preprocess
from scripts.gpu.plan import QUESTION_TOKENS, Plan
from scripts.gpu.runtime_cases import Case

__all__ = ["Bundles", "KeptWeights"]

_ROW = ROWS[1]  # whose encoder the bundles have
_FILM_SEED = 0
# Speed does not depend on how well scales are chosen.
_CLIPS, _PROMPTS_PER_CLIP = 2, 4


class KeptWeights(Mapping[str, Tensor]):
    """Weights that are made once and then stay in memory.

    Args:
        weights: what they are made from.
        perturb: relative noise on each.
    """

    def __init__(self, weights: Mapping[str, Tensor], perturb: float = 0.0) -> None:
        self._weights, self._perturb = weights, perturb
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._kept:
            weight = self._weights[name]
            if self._perturb:
                generator = torch.Generator().manual_seed(len(self._kept))
                weight = weight * (1.0 + self._perturb * torch.randn(weight.shape, generator=generator))
            self._kept[name] = weight
        return self._kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


class Bundles:
    """Exports bundles when they are asked for, and keeps them in a folder.

    Args:
        plan: the plan of the run.
    """

    def __init__(self, plan: Plan) -> None:
        self.config = config = row_config(plan.config, _ROW)
        self._folder = plan.folder / f"{config.name}-{config.temporal.encoder}-{config.num_video_tokens}"
        self._perturb = plan.perturb

    @cached_property
    def source(self) -> ExportSource:
        """The model, its weights without noise."""
        source = random_source(self.config)
        return replace(source, weights=KeptWeights(source.weights))

    @cached_property
    def frames(self) -> NDArray[np.uint8]:
        """The film that every case is asked about, uint8 (T, H, W, 3), with more frames than the model samples."""
        film = make_film(_FILM_SEED, "test")
        return np.stack(film_frames(film, np.arange(film.num_frames)))

    @cached_property
    def pixels(self) -> NDArray[np.float32]:
        """The frames that the runtime samples, preprocessed as there: (T, 3, S, S) in [-1, 1]."""
        preprocessor = self.source.preprocessor
        clip = load_clip(self.frames, num_frames=self.config.num_frames, rule=preprocessor.sampling)
        found: NDArray[np.float32] = preprocess(clip.frames, preprocessor)
        return found

    @cached_property
    def question(self) -> str:
        """The question that every case is asked."""
        return question_of_length(Tokenizer.parse(self.source.tokenizer_json), QUESTION_TOKENS)

    @cached_property
    def prompt(self) -> Prompt:
        """What ``question`` becomes."""
        source, messages = self.source, [Message("user", self.question)]
        tokenizer = Tokenizer.parse(source.tokenizer_json)
        return build_prompt(tokenizer, source.chat_template, source.generation, messages)

    def path(self, case: Case) -> Path:
        """Where a case's bundle is, or will be."""
        noise = f"-perturbed-{self._perturb:g}" if self._perturb else ""
        return self._folder / f"{case.target}-{Precision.parse(case.precision).file_name}{noise}"

    def get(self, case: Case) -> tuple[Path, dict[str, Any]]:
        """The bundle of a case, exported unless it is there; and its size, with the seconds that the export took."""
        path, seconds = self.path(case), None
        try:
            open_bundle(path)
        except ArtifactError:  # none, or one that is damaged
            began = time.perf_counter()
            self._export(case, path)
            seconds = time.perf_counter() - began
        return path, {"export_s": seconds, "size_bytes": open_bundle(path).manifest.size_bytes}

    def drop(self, case: Case) -> None:
        """Deletes the bundle of a case with its engines: at full size each takes gigabytes."""
        shutil.rmtree(self.path(case), ignore_errors=True)

    def _export(self, case: Case, path: Path) -> None:
        source, precision = self.source, Precision.parse(case.precision)
        if self._perturb:
            source = replace(source, weights=KeptWeights(source.weights, self._perturb))
        self._folder.mkdir(parents=True, exist_ok=True)
        quantization = scales = None
        if precision.is_quantized:
            quantization = replace(QuantizationOptions.for_speed_alone(), calibration=self._calibration())
        elif precision.decoder.cache == "int8":
            scales = self._cache_scales()
        export_bundle(
            source,
            path,
            precision=precision,
            target=case.target,
            quantization=quantization,
            cache_scales=scales,
            clip=ParityClip(self.pixels, {}),
            check=False,
            force=path.exists(),
        )

    def _calibration(self) -> Path:
        folder = self._folder / "calibration"
        if not folder.exists():
            samples = film_clips(self.source, num_clips=_CLIPS, prompts_per_clip=_PROMPTS_PER_CLIP)
            calibrate(folder, self.source, self.source.hashed_provenance(), samples)
        return folder

    def _cache_scales(self) -> CacheScales:
        """From the keys and values of the prompt's text."""
        weights, text = self.source.weights, self.config.text
        table_VD = embedding_table(weights, text).numpy()
        return prompt_cache_scales(text, weights, table_VD[list(self.prompt.ids)])
