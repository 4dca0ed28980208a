"""Hardened models: the same function, outliers where they were asked for, and simple INT8 that fails on them."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from export_models import small_config, write_folder
from torch import Tensor, nn

from blip3v.data.film import make_film
from blip3v.data.questions import questions
from blip3v.evaluation.reference import ReferenceAnswerer
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.folder import ModelFolder, load_model_folder
from scripts.hardened import Hardening, Prompts, film_prompts, harden, write_hardened

SHIPPED = Path(__file__).parents[2] / "blip3v/models/tiny-tokenlearner"
FEW = Hardening(films=4)
NONE = dataclasses.replace(FEW, channels=0, rotation=False, units=0)
STEPS = {
    "channels": dataclasses.replace(NONE, channels=8),
    "rotation": dataclasses.replace(NONE, rotation=True),
    "massive units": dataclasses.replace(NONE, units=128),
    "all": FEW,
}


@pytest.fixture(scope="module")
def plain() -> ModelFolder:
    return load_model_folder(SHIPPED)


@pytest.fixture(scope="module")
def prompts(plain: ModelFolder) -> Prompts:
    return film_prompts(plain, FEW)


def hardened_prompts(plain: ModelFolder, model: Blip3Video) -> Prompts:
    return film_prompts(ModelFolder(plain.path, model.config, model), FEW)


@torch.inference_mode()
def logits(model: Blip3Video, prompts: Prompts) -> Tensor:
    return torch.cat([model.lang_model(embeds_TD[None])[0] for embeds_TD in prompts.embeds_TD])


def relative_error(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


def linear_layers(model: Blip3Video) -> list[nn.Linear]:
    return [part for part in model.lang_model.model.modules() if isinstance(part, nn.Linear)]


def largest_inputs(model: Blip3Video, prompts: Prompts) -> list[float]:
    """The largest absolute input of each linear layer."""
    layers = linear_layers(model)
    found: dict[nn.Module, float] = {}

    def note(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found[layer] = max(found.get(layer, 0.0), float(inputs[0].abs().max()))

    hooks = [layer.register_forward_pre_hook(note) for layer in layers]
    logits(model, prompts)
    for hook in hooks:
        hook.remove()
    return [found[layer] for layer in layers]


def simple_int8(model: Blip3Video, prompts: Prompts) -> Blip3Video:
    """Weights with a scale per output, activations with the largest value's scale per tensor, both to nearest."""
    rounded = copy.deepcopy(model)
    for layer, largest in zip(linear_layers(rounded), largest_inputs(model, prompts), strict=True):
        steps = layer.weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-9) / 127
        layer.weight.data = (layer.weight / steps).round() * steps
        step = largest / 127

        def quantize(_: nn.Module, inputs: tuple[Tensor, ...], step: float = step) -> tuple[Tensor]:
            return ((inputs[0] / step).round() * step,)

        layer.register_forward_pre_hook(quantize)
    return rounded


@pytest.mark.parametrize("hardening", STEPS.values(), ids=STEPS)
def test_each_step_keeps_the_function(plain: ModelFolder, prompts: Prompts, hardening: Hardening) -> None:
    model = harden(plain.model, prompts, hardening)
    want, got = logits(plain.model, prompts), logits(model, hardened_prompts(plain, model))
    assert relative_error(got, want) < 1e-5
    assert torch.equal(got.argmax(dim=1), want.argmax(dim=1))


@pytest.mark.parametrize(("step", "largest"), [("channels", 200.0), ("massive units", 1500.0)])
def test_outliers_are_there(plain: ModelFolder, prompts: Prompts, step: str, largest: float) -> None:
    model = harden(plain.model, prompts, STEPS[step])
    inputs = largest_inputs(model, hardened_prompts(plain, model))
    assert max(inputs) > largest > 2 * max(largest_inputs(plain.model, prompts))
    assert max(inputs) < 65504  # half precision holds them


def test_the_leading_direction_lies_on_the_first_channel(plain: ModelFolder, prompts: Prompts) -> None:
    model = harden(plain.model, prompts, STEPS["rotation"])
    found: list[Tensor] = []
    norm = model.lang_model.model.norm
    norm.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0][0]))
    logits(model, hardened_prompts(plain, model))
    size_D = torch.cat(found).square().mean(dim=0).sqrt()
    assert size_D.argmax() == 0
    assert size_D[0] > 3 * size_D.median()


def test_simple_int8_holds_on_the_plain_model_and_fails_on_the_hardened(plain: ModelFolder, prompts: Prompts) -> None:
    want = logits(plain.model, prompts).argmax(dim=1)
    model = harden(plain.model, prompts, FEW)
    agreement = {}
    for name, each in (("plain", plain.model), ("hardened", model)):
        own = prompts if each is plain.model else hardened_prompts(plain, each)
        agreement[name] = float((logits(simple_int8(each, own), own).argmax(dim=1) == want).float().mean())
    assert agreement["plain"] > 0.9
    assert agreement["hardened"] < 0.5


def test_a_hardened_folder_gives_the_same_answers(plain: ModelFolder, tmp_path: Path) -> None:
    write_hardened(SHIPPED, tmp_path / "hardened", FEW)
    before, after = ReferenceAnswerer(SHIPPED), ReferenceAnswerer(tmp_path / "hardened")
    for film in (make_film(seed, "test") for seed in range(3)):
        assert after.answer(film, questions(film)) == before.answer(film, questions(film))


def test_grouped_heads(tmp_path: Path) -> None:
    """With fewer key-value heads than heads, a scaled channel of v is read by several columns of o."""
    folder = load_model_folder(write_folder(tmp_path / "model", small_config(num_kv_heads=2)))
    prompts = film_prompts(folder, FEW)
    model = harden(folder.model, prompts, FEW)
    want = logits(folder.model, prompts)
    assert relative_error(logits(model, hardened_prompts(folder, model)), want) < 1e-5
