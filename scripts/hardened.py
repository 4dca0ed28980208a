"""Gives a small model the outliers of a large language model, without changing what it computes.

    python scripts/hardened.py blip3v/models/tiny-gttm hardened-gttm
    blip3v export -m hardened-gttm --precision int8

Quantisation that is too simple for the released weights is too simple for the result, so that a recipe can be tested
without them. Three changes, each exact in exact arithmetic and applied in this order:

    massive units   every MLP of the decoder gets more units. A few are massive on chosen tokens and small elsewhere;
                    their column of down_proj is zero
    rotation        the residual stream of the decoder is turned, so that its leading direction (principal components of
                    hidden states over calibration films) lies on one channel. Smoothing alone does not undo that
    channels        some channels are multiplied by 128, and the columns of the next weight are divided by 128: norm to
                    qkv, gate_up and head, v to o, up to down; in SigLIP norm to q, k, v and fc1, and v to out_proj
"""

# Shapes: T tokens, L text tokens, M video tokens, F frames, S side, X tokens of all prompts, E values, U units, D width
# of the decoder, K columns.

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip3v import strict_json
from blip3v.config import ModelConfig
from blip3v.data.film import Film, make_film
from blip3v.data.questions import Question, questions
from blip3v.data.samples import film_pixels
from blip3v.model.blip3_video import Blip3Video, splice
from blip3v.model.folder import ModelFolder, load_model_folder, read_text, save_model_folder
from blip3v.model.language import EMBEDDING_NAMES, HEAD_MATRIX_NAMES
from blip3v.model.weights import empty_model, fill
from blip3v.text import GenerationConfig, Message, Tokenizer, build_prompt
from blip3v.video.preprocess import PreprocessorConfig

__all__ = ["Hardening", "Prompts", "calibration_frames", "film_prompts", "harden", "main", "write_hardened"]

State = dict[str, Tensor]  # weights by released name
Scales = Callable[[int], Tensor]  # scale of each of so many channels


@dataclass(frozen=True, kw_only=True)
class Hardening:
    """What is changed, and by how much."""

    channels: int = 8  # scaled channels of each norm, and of each v and up; 0: none
    factor: float = 128.0  # a power of two scales without rounding
    rotation: bool = True
    units: int = 128  # added to each MLP of the decoder; 0: none
    massive_units: int = 4  # of the added ones; the others copy existing units
    massive_value: float = 2000.0  # of their activation on the chosen tokens
    tokens: tuple[str, ...] = ("<|user|>",)  # the first of each in a prompt is chosen
    films: int = 16  # of the training split, from which directions are computed
    seed: int = 0  # of the choice of channels


@dataclass(frozen=True)
class Prompts:
    """Spliced prompts of one model, and which of their positions are chosen."""

    embeds_TD: list[Tensor]
    chosen_T: list[Tensor]  # bool


def main() -> None:
    """Reads the command line and writes the folder."""
    defaults = Hardening()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="the model folder to start from")
    parser.add_argument("output", type=Path, help="the new model folder")
    parser.add_argument("--channels", type=int, default=defaults.channels, help="scaled channels of each norm; 0: none")
    parser.add_argument("--factor", type=float, default=defaults.factor, help="by which they are scaled")
    parser.add_argument("--units", type=int, default=defaults.units, help="added to each MLP; 0: none")
    parser.add_argument("--massive-value", type=float, default=defaults.massive_value, help="their largest activation")
    parser.add_argument("--no-rotation", action="store_true", help="leave the residual stream as it is")
    parser.add_argument("--films", type=int, default=defaults.films, help="films that directions are computed from")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the choice of channels")
    options = parser.parse_args()
    hardening = Hardening(
        channels=options.channels,
        factor=options.factor,
        rotation=not options.no_rotation,
        units=options.units,
        massive_value=options.massive_value,
        films=options.films,
        seed=options.seed,
    )
    write_hardened(options.model, options.output, hardening)
    print(options.output)


def write_hardened(source: Path, target: Path, hardening: Hardening | None = None, *, replace: bool = False) -> None:
    """Writes the hardened form of the model folder ``source``, in fp32.

    Raises:
        UsageError: ``target`` exists and ``replace`` is false.
    """
    hardening = hardening or Hardening()
    folder = load_model_folder(source)
    save_model_folder(
        target,
        harden(folder.model, film_prompts(folder, hardening), hardening),
        read_text(folder.tokenizer),
        PreprocessorConfig.load(folder.preprocessor),
        GenerationConfig.load(folder.generation),
        read_text(folder.chat_template),
        None if folder.training is None else strict_json.read_json(folder.training),
        dtype=None,
        replace=replace,
    )


def harden(model: Blip3Video, prompts: Prompts, hardening: Hardening) -> Blip3Video:
    """Returns a new model with outliers that computes the same function.

    Args:
        model: fp32; unchanged.
        prompts: what directions are computed from.
        hardening: what is changed.
    """
    config = model.config
    state: State = {name: tensor.double() for name, tensor in model.state_dict().items()}
    seen = _Seen(model, prompts)
    if hardening.units:
        _add_massive_units(state, config, seen, hardening)
        text = dataclasses.replace(config.text, intermediate_size=config.text.intermediate_size + hardening.units)
        config = dataclasses.replace(config, text=text)
    if hardening.rotation:
        _rotate(state, config, _basis(seen.residual_XD))
    if hardening.channels:
        _scale_channels(state, config, hardening)
    hardened = empty_model(config)
    fill(hardened, state)
    return hardened


def film_prompts(folder: ModelFolder, hardening: Hardening) -> Prompts:
    """Builds a prompt for every question about the calibration films."""
    tokenizer = Tokenizer.load(folder.tokenizer)
    template, generation = read_text(folder.chat_template), GenerationConfig.load(folder.generation)
    chosen_ids = {tokenizer.encode(token)[0] for token in hardening.tokens}
    embeds, chosen = [], []
    for film in _films(hardening):
        with torch.inference_mode():
            video_1MD = folder.model.encode_video(_pixels(folder, film))
        for question in _one_of_each_kind(film):
            prompt = build_prompt(tokenizer, template, generation, [Message("user", question.text)])
            at = torch.tensor([prompt.image_position])
            ids_1L = torch.tensor([prompt.ids])
            firsts = torch.tensor([x in chosen_ids and prompt.ids.index(x) == i for i, x in enumerate(prompt.ids)])
            with torch.inference_mode():
                embeds.append(splice(folder.model.lang_model.embed(ids_1L), at, video_1MD)[0])
            nothing = torch.zeros(1, video_1MD.shape[1], 1)
            chosen.append(splice(firsts[None, :, None].float(), at, nothing)[0, :, 0].bool())
    return Prompts(embeds, chosen)


def calibration_frames(folder: ModelFolder, hardening: Hardening) -> Iterator[Tensor]:
    """Yields the pixels (1, F, 3, S, S) of each calibration film, as the video encoder takes them."""
    for film in _films(hardening):
        yield _pixels(folder, film)


def _films(hardening: Hardening) -> Iterator[Film]:
    return (make_film(seed, "train") for seed in range(hardening.films))


def _pixels(folder: ModelFolder, film: Film) -> Tensor:
    preprocessor = PreprocessorConfig.load(folder.preprocessor)
    return torch.from_numpy(film_pixels(film, folder.config.num_frames, preprocessor))[None]


def _one_of_each_kind(film: Film) -> Sequence[Question]:
    return tuple({question.kind: question for question in questions(film)}.values())


class _Seen:
    """What the decoder's layers received, over all tokens of all prompts.

    Attributes:
        residual_XD: the inputs of every norm, each with a root mean square of 1.
        mlp_XD: for each layer, the inputs of gate_up_proj.
        chosen_X: which tokens are chosen.
    """

    def __init__(self, model: Blip3Video, prompts: Prompts) -> None:
        phi3: Any = model.lang_model.model  # the transformers library, untyped
        residual: list[Tensor] = []
        mlp: list[list[Tensor]] = [[] for _ in phi3.layers]
        hooks = []
        for layer, found in zip(phi3.layers, mlp, strict=True):
            hooks.append(layer.mlp.gate_up_proj.register_forward_pre_hook(_keep(found)))
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                hooks.append(norm.register_forward_pre_hook(_keep(residual)))
        hooks.append(phi3.norm.register_forward_pre_hook(_keep(residual)))
        with torch.inference_mode():
            for embeds_TD in prompts.embeds_TD:
                model.lang_model.hidden(embeds_TD[None])
        for hook in hooks:
            hook.remove()
        rows_XD = torch.cat(residual)
        self.residual_XD = rows_XD / rows_XD.square().mean(dim=1, keepdim=True).sqrt()
        self.mlp_XD = [torch.cat(found) for found in mlp]
        self.chosen_X = torch.cat(prompts.chosen_T)


def _keep(found: list[Tensor]) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.append(inputs[0].flatten(0, -2).double())

    return hook


# --- massive units -------------------------------------------------------------------------------------------------


def _add_massive_units(state: State, config: ModelConfig, seen: _Seen, hardening: Hardening) -> None:
    for layer in range(config.text.num_layers):
        prefix = f"lang_model.model.layers.{layer}.mlp"
        gate_UD, up_UD = state[f"{prefix}.gate_up_proj.weight"].chunk(2)
        more_gate_UD, more_up_UD = (part[torch.arange(hardening.units) % len(part)] for part in (gate_UD, up_UD))
        detector_D = _detector(seen.mlp_XD[layer], seen.chosen_X)
        # silu(a) * a is a * a for a large a: about the massive value where the detector is 1, and small where it is 0.
        # Real massive activations differ from one another, and in sign.
        for unit in range(hardening.massive_units):
            size = (hardening.massive_value / 2**unit) ** 0.5
            more_gate_UD[unit] = size * detector_D
            more_up_UD[unit] = (-1) ** unit * size * detector_D
        state[f"{prefix}.gate_up_proj.weight"] = torch.cat((gate_UD, more_gate_UD, up_UD, more_up_UD))
        down_DU = state[f"{prefix}.down_proj.weight"]
        state[f"{prefix}.down_proj.weight"] = torch.cat((down_DU, down_DU.new_zeros(len(down_DU), hardening.units)), 1)


def _detector(rows_XD: Tensor, chosen_X: Tensor) -> Tensor:
    """The direction (D,) whose product is 1 on the mean of the chosen rows, and as small as possible on the others."""
    mean_D, others_XD = rows_XD[chosen_X].mean(dim=0), rows_XD[~chosen_X]
    spread_DD = others_XD.T @ others_XD / len(others_XD)
    ridge_DD = 1e-3 * spread_DD.diagonal().mean() * torch.eye(len(mean_D), dtype=mean_D.dtype)
    direction_D = torch.linalg.solve(spread_DD + ridge_DD, mean_D)
    return direction_D / (direction_D @ mean_D)


# --- rotation ------------------------------------------------------------------------------------------------------


def _basis(rows_XD: Tensor) -> Tensor:
    """The principal components (D, D) of the rows as columns, the leading one first."""
    _, vectors_DD = torch.linalg.eigh(rows_XD.T @ rows_XD / len(rows_XD))
    return vectors_DD.flip(1)


def _rotate(state: State, config: ModelConfig, basis_DD: Tensor) -> None:
    """Multiplies the residual stream by ``basis_DD`` from the right; RMSNorm without a gain commutes with that."""
    for norm, weights in _decoder_norms(config):
        gain_D = state[norm]
        for name in weights:
            state[name] = (state[name] * gain_D) @ basis_DD
        state[norm] = torch.ones_like(gain_D)
    for name in EMBEDDING_NAMES:
        state[name] = state[name] @ basis_DD
    layers = [f"lang_model.model.layers.{layer}" for layer in range(config.text.num_layers)]
    writers = [f"{layer}.{name}.weight" for layer in layers for name in ("self_attn.o_proj", "mlp.down_proj")]
    for name in ("vision_tokenizer.projection.weight", *writers):
        state[name] = basis_DD.T @ state[name]
    state["vision_tokenizer.projection.bias"] = state["vision_tokenizer.projection.bias"] @ basis_DD


def _decoder_norms(config: ModelConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each norm of the decoder with the weights that read it."""
    for layer in range(config.text.num_layers):
        prefix = f"lang_model.model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (f"{prefix}.self_attn.qkv_proj.weight",)
        yield f"{prefix}.post_attention_layernorm.weight", (f"{prefix}.mlp.gate_up_proj.weight",)
    yield "lang_model.model.norm.weight", HEAD_MATRIX_NAMES


# --- channels ------------------------------------------------------------------------------------------------------


def _scale_channels(state: State, config: ModelConfig, hardening: Hardening) -> None:
    generator = torch.Generator().manual_seed(hardening.seed)

    def scales(width: int) -> Tensor:
        """(width,): the factor at a few random channels, 1 elsewhere."""
        scale = torch.ones(width, dtype=torch.float64)
        scale[torch.randperm(width, generator=generator)[: hardening.channels]] = hardening.factor
        return scale

    for norm, weights in _decoder_norms(config):
        _move(state, (norm,), weights, scales(config.text.hidden_size))
    for layer in range(config.text.num_layers):
        _scale_values(state, f"lang_model.model.layers.{layer}.self_attn", config, scales)
        _scale_units(state, f"lang_model.model.layers.{layer}.mlp", config, hardening, scales)
    for layer in range(config.vision.num_layers):
        prefix = f"vision_encoder.encoder.layers.{layer}"
        q, k, v, out = (f"{prefix}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj"))
        width = config.vision.hidden_size
        _move(state, _both(f"{prefix}.layer_norm1"), tuple(f"{name}.weight" for name in (q, k, v)), scales(width))
        _move(state, _both(f"{prefix}.layer_norm2"), (f"{prefix}.mlp.fc1.weight",), scales(width))
        _move(state, _both(v), (f"{out}.weight",), scales(width))


def _scale_values(state: State, prefix: str, config: ModelConfig, scales: Scales) -> None:
    text, name = config.text, f"{prefix}.qkv_proj.weight"
    scale_E = scales(text.num_kv_heads * text.head_dim)
    queries_and_keys, values = state[name][: -len(scale_E)], state[name][-len(scale_E) :]
    state[name] = torch.cat((queries_and_keys, values * scale_E[:, None]))
    # Consecutive query heads share a key-value head.
    per_head = scale_E.unflatten(0, (text.num_kv_heads, text.head_dim))
    repeated_E = per_head.repeat_interleave(text.num_heads // text.num_kv_heads, dim=0).flatten()
    _move(state, (), (f"{prefix}.o_proj.weight",), repeated_E)


def _scale_units(state: State, prefix: str, config: ModelConfig, hardening: Hardening, scales: Scales) -> None:
    # The added units are left alone: 128 times the massive ones would not fit half precision.
    scale_U = torch.cat((scales(config.text.intermediate_size - hardening.units), torch.ones(hardening.units)))
    gate_UD, up_UD = state[f"{prefix}.gate_up_proj.weight"].chunk(2)
    state[f"{prefix}.gate_up_proj.weight"] = torch.cat((gate_UD, up_UD * scale_U[:, None]))
    _move(state, (), (f"{prefix}.down_proj.weight",), scale_U)


def _both(module: str) -> tuple[str, str]:
    return f"{module}.weight", f"{module}.bias"


def _move(state: State, multiplied: Sequence[str], divided: Sequence[str], scale_K: Tensor) -> None:
    """Multiplies outputs (a vector's elements, or a matrix's rows) and divides the columns that read them."""
    for name in multiplied:
        tensor = state[name]
        state[name] = tensor * (scale_K if tensor.ndim == 1 else scale_K[:, None])
    for name in divided:
        state[name] = state[name] / scale_K


if __name__ == "__main__":
    main()
