"""A plan without a recipe: weights rounded to the nearest, ranges of activations from their largest values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from blip3v.calibration.layers import linear_layers
from blip3v.calibration.quantized import QuantizedMatrix, nearest, scales_of
from blip3v.config import ModelConfig
from blip3v.data.samples import FilmSource
from blip3v.model.blip3_video import Blip3Video, splice
from blip3v.model.folder import ModelPaths, read_text
from blip3v.model.weights import empty_model, fill
from blip3v.text.generation import GenerationConfig
from blip3v.text.prompt import Prompt, build_prompt
from blip3v.text.special import ASSISTANT
from blip3v.text.template import Message
from blip3v.text.tokenizer import Tokenizer
from blip3v.video.preprocess import PreprocessorConfig, preprocess


@dataclass(frozen=True)
class NearestPlan:
    """``damaged`` multiplies the scales of layers, of weights in every format; ``scales`` are of activations."""

    weights: Mapping[str, Tensor]
    scales: Mapping[str, float]
    input_rotation_DD: Tensor | None = None
    damaged: Mapping[str, float] = field(default_factory=dict)

    def activation_scale(self, layer: str) -> float:
        return self.scales[layer]

    def quantize(self, layer: str, weight_NK: Tensor, *, bits: int, group_size: int | None) -> QuantizedMatrix:
        quantized = nearest(weight_NK, scales_of(weight_NK, bits, group_size), bits, group_size)
        return dataclasses.replace(quantized, scales_Ng=quantized.scales_Ng * self.damaged.get(layer, 1.0))

    def rows(self, layer: str) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class AskedPrompt:
    prompt: Prompt
    answer_ids: tuple[int, ...]


@dataclass(frozen=True)
class Asked:
    """A clip that is in memory."""

    name: str
    prompts: list[AskedPrompt]
    pixels_FCHW: np.ndarray

    def load(self) -> np.ndarray:
        return self.pixels_FCHW


def nearest_plan(config: ModelConfig, weights: Mapping[str, Tensor], clips: Sequence[Asked]) -> NearestPlan:
    """Runs the whole model to find the largest input of every layer."""
    model = empty_model(config)
    fill(model, weights)
    largest: dict[str, float] = {}
    layers = linear_layers(config)
    for name, module in model.named_modules():
        if name in layers:
            module.register_forward_pre_hook(_record(name, largest))
    for clip in clips:
        for asked in clip.prompts:
            whole_model_logits(model, clip, asked)
    return NearestPlan(weights, {name: value / 127 for name, value in largest.items()})


def _record(name: str, largest: dict[str, float]):
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        largest[name] = max(largest.get(name, 0.0), float(inputs[0].abs().max()))

    return hook


@torch.inference_mode()
def whole_model_logits(model: Blip3Video, clip: Asked, asked: AskedPrompt) -> Tensor:
    """Logits (N, V) at the positions that predict the answer and its end."""
    video_1MD = model.encode_video(torch.from_numpy(clip.load())[None])
    embeds_1LD = model.lang_model.embed(torch.tensor([[*asked.prompt.ids, *asked.answer_ids]]))
    spliced = splice(embeds_1LD, torch.tensor([asked.prompt.image_position]), video_1MD)
    return model.lang_model(spliced)[0, -1 - len(asked.answer_ids) :]


def films(folder: ModelPaths, num_films: int, questions: int) -> list[Asked]:
    """Films of the training set with questions and their true answers."""
    source = FilmSource("instructions", 20000, folder.config.num_frames, questions, seed=7)
    tokenizer, template = Tokenizer.load(folder.tokenizer), read_text(folder.chat_template)
    generation = GenerationConfig.load(folder.generation)
    preprocessor = PreprocessorConfig.load(folder.preprocessor)
    clips = []
    for index in range(num_films):
        prompts = [
            AskedPrompt(
                build_prompt(tokenizer, template, generation, [Message("user", pair.question)]),
                tuple(tokenizer.encode_after(ASSISTANT, pair.answer)),
            )
            for pair in source.pairs(index, 0)
        ]
        clips.append(Asked(f"film {index}", prompts, preprocess(source.frames(index, 0), preprocessor)))
    return clips
