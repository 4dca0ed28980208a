"""Small random models with what their linear layers see, for the tests of the recipe."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from blip3v.calibration.layers import HEAD
from blip3v.calibration.statistics import LayerStatistics
from blip3v.config import ModelConfig, preset
from blip3v.model import Blip3Video
from blip3v.model.temporal import with_encoder
from blip3v.model.weights import empty_model, fill, random_model

NUM_TOKENS = 48


class KnownStatistics:
    """Statistics that are given."""

    def __init__(self, layers: dict[str, LayerStatistics]) -> None:
        self._layers = layers

    def layer(self, name: str) -> LayerStatistics:
        return self._layers[name]


def all_rows(rows_NK: Tensor, num_extreme: int = 0, num_seen: int | None = None) -> LayerStatistics:
    return LayerStatistics(rows_NK.abs().amax(dim=0), rows_NK, num_seen or len(rows_NK), num_extreme)


def small_model(encoder: str = "tokenlearner", *, num_kv_heads: int = 4, seed: int = 0) -> Blip3Video:
    """The tiny preset with two layers; every weight is random, norms and biases too."""
    tiny = with_encoder(preset("tiny"), encoder)
    config = dataclasses.replace(
        tiny,
        num_frames=2,
        vision=dataclasses.replace(tiny.vision, image_size=32, num_layers=2),
        text=dataclasses.replace(tiny.text, num_layers=2, num_kv_heads=num_kv_heads),
    )
    return random_model(config, seed=seed)


def refilled(config: ModelConfig, weights: dict[str, Tensor]) -> Blip3Video:
    model = empty_model(config)
    fill(model, weights)
    return model


def inputs(config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Frames, and embeddings of which some channels are large."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(1, 2, 3, config.vision.image_size, config.vision.image_size, generator=generator) * 2 - 1
    embeds = torch.randn(1, NUM_TOKENS, config.text.hidden_size, generator=generator)
    embeds[..., 5] *= 30
    return frames, embeds


@torch.inference_mode()
def outputs(model: Blip3Video, rotation_DD: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Video tokens, and the logits of all positions."""
    frames, embeds = inputs(model.config)
    return model.encode_video(frames), model.lang_model(embeds if rotation_DD is None else embeds @ rotation_DD)


def statistics_of(model: Blip3Video, rotation_DD: Tensor | None = None) -> KnownStatistics:
    """Every row that every linear layer sees, in order."""
    with recorded(model) as rows:
        outputs(model, rotation_DD)
    return KnownStatistics({name: all_rows(torch.cat(parts)) for name, parts in rows.items()})


@contextmanager
def recorded(model: Blip3Video) -> Iterator[dict[str, list[Tensor]]]:
    rows: defaultdict[str, list[Tensor]] = defaultdict(list)
    hooks = []
    for name, module in model.named_modules():
        if name == HEAD or (isinstance(module, nn.Linear) and not name.startswith(HEAD)):

            def keep(_: nn.Module, given: tuple[Tensor, ...], name: str = name) -> None:
                rows[name].append(given[0].flatten(0, -2))

            hooks.append(module.register_forward_pre_hook(keep))
    yield rows
    for hook in hooks:
        hook.remove()
