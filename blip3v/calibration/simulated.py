"""The PyTorch reference with chosen layers quantised in simulation: in floats, as the integers would compute it.

A layer's weight is replaced by what its integers stand for, and its inputs are rounded as the engine rounds them; the
sums of its products are fp32. All other layers are fp32. One layer's weights are in memory at a time, and all samples
pass through it, one at a time, before the next is read: what they have become waits where the caller says, so that
memory does not grow with their number. Not here: how integers are chosen (``plan.py``).
"""

# Shapes: N outputs or positions, K inputs, F frames, P patches, M video tokens, L tokens, D width, V logits.

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from blip3v.calibration.fake import on_block_grid, on_grid
from blip3v.calibration.layers import HEAD
from blip3v.calibration.plan import Plan
from blip3v.calibration.quantized import group_of
from blip3v.config import ModelConfig
from blip3v.errors import ConfigError
from blip3v.model.language import head_bias, head_matrix
from blip3v.model.layerwise import one_layer
from blip3v.model.resampler import PerceiverResampler
from blip3v.model.vision import build_vision
from blip3v.model.weights import fill, without_weights

__all__ = [
    "FORMATS",
    "HiddenStates",
    "Quantizer",
    "Samples",
    "SimulatedDecoder",
    "SimulatedFormat",
    "SimulatedVideoEncoder",
    "Take",
    "simulated",
]

_VISION_LAYERS = "vision_encoder.encoder.layers."
_RESAMPLER = "vision_tokenizer."
_DECODER_LAYERS = "lang_model.model.layers."


class Samples(Protocol):
    """An fp32 tensor for each sample, by number: a ``Spool``, for example."""

    def __len__(self) -> int:
        """The number of samples."""

    def read(self, at: int) -> Tensor:
        """Returns the tensor of sample ``at``."""

    def write(self, at: int, tensor: Tensor) -> None:
        """Replaces the tensor of sample ``at``."""


# Where the hidden states before a layer are, by its index; by the number of layers, those before the final norm. They
# are read there for the layer, and written there after the layer before it. It may be the same place for all layers.
HiddenStates = Callable[[int], Samples]

# Called with the number of a sample and what was computed for it.
Take = Callable[[int, Tensor], None]


@dataclass(frozen=True, kw_only=True)
class SimulatedFormat:
    """What a format of weights does to a layer."""

    bits: int | None  # of its integers; None: the weight is stored in half precision
    inputs: Literal["static", "block", "exact"]  # scale per tensor; scale per block and token; not rounded

    @property
    def in_groups(self) -> bool:
        """Whether a scale belongs to a group of an output channel's weights rather than to all of them."""
        return self.inputs == "block"


# By their names in ``GraphPrecision.weights``. Layers in ``float32`` are not simulated.
FORMATS: dict[str, SimulatedFormat] = {
    "float16-stored": SimulatedFormat(bits=None, inputs="exact"),
    "int8": SimulatedFormat(bits=8, inputs="static"),
    # ONNX Runtime's MatMulNBits rounds its inputs to 8 bits in blocks as long as the groups (accuracy level 4).
    "int8-block": SimulatedFormat(bits=8, inputs="block"),
    "int4-block": SimulatedFormat(bits=4, inputs="block"),
}


class Quantizer:
    """Weights and inputs of the layers of a plan in a format.

    Args:
        plan: the recipe, applied to the model.
        group_size: weights of an output channel that share a scale in block formats.
    """

    def __init__(self, plan: Plan, group_size: int) -> None:
        self.plan = plan
        self._group_size = group_size

    def weight(self, layer: str, weight_NK: Tensor, name: str) -> Tensor:
        """Returns what the layer's stored weight stands for, fp32 (N, K).

        Args:
            layer: as ``linear_layers`` names it.
            weight_NK: the plan's, fp32.
            name: a key of ``FORMATS``.

        Raises:
            ConfigError: the format is unknown; also from ``rounding``.
        """
        form = _format(name)
        if form.bits is None:
            return weight_NK.half().float()
        size = group_of(weight_NK.shape[1], self._group_size) if form.in_groups else None
        return self.plan.quantize(layer, weight_NK, bits=form.bits, group_size=size).dequantized()

    def rounding(self, layer: str, num_inputs: int, name: str) -> Callable[[Tensor], Tensor]:
        """Returns the function that rounds the layer's inputs, (..., K), as the format does."""
        form = _format(name)
        if form.inputs == "static":
            scale = self.plan.activation_scale(layer)
            return lambda x: on_grid(x, scale)
        if form.inputs == "block":
            size = group_of(num_inputs, self._group_size)
            return lambda x: on_block_grid(x, size)
        return lambda x: x


def _format(name: str) -> SimulatedFormat:
    if name not in FORMATS:
        raise ConfigError(f"the format {name!r} cannot be simulated; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


@contextmanager
def simulated(part: nn.Module, prefix: str, formats: Mapping[str, str], quantizer: Quantizer) -> Iterator[None]:
    """Inside the block, linear modules compute in their formats; afterwards they are as before.

    Args:
        part: holds the modules.
        prefix: what precedes their names in ``part`` in the names of their layers, including the dot.
        formats: for each layer to quantise, a key of ``FORMATS``.
        quantizer: gives the weights and rounds the inputs.

    Raises:
        ConfigError: there is no such layer.
    """
    linear = {prefix + name: module for name, module in part.named_modules() if isinstance(module, nn.Linear)}
    _check_all_taken({name: form for name, form in formats.items() if name not in linear}, prefix)
    hooks, exact = [], {}
    try:
        for name, form in formats.items():
            module = linear[name]
            exact[name] = module.weight
            weight_NK = quantizer.weight(name, module.weight.detach(), form)
            module.weight = nn.Parameter(weight_NK, requires_grad=False)
            hooks.append(module.register_forward_pre_hook(_rounds(quantizer.rounding(name, module.in_features, form))))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in exact.items():
            linear[name].weight = weight


def _rounds(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, inputs: (function(inputs[0]), *inputs[1:])


class SimulatedVideoEncoder:
    """The video encoder of a plan's model: one layer of the tower at a time, resampler and temporal encoder as a whole.

    Args:
        config: the model's.
        quantizer: its plan holds the weights.
    """

    def __init__(self, config: ModelConfig, quantizer: Quantizer) -> None:
        self._num_layers, self._quantizer = config.vision.num_layers, quantizer
        with without_weights():
            tower = build_vision(dataclasses.replace(config.vision, num_layers=1)).eval()
            self._resampler = PerceiverResampler(config).eval()
        self._embeddings, self._encoder = tower.get_submodule("embeddings"), tower.get_submodule("encoder")
        self._norm = tower.get_submodule("post_layernorm")
        fill(self._embeddings, quantizer.plan.weights, "vision_encoder.embeddings.")
        fill(self._norm, quantizer.plan.weights, "vision_encoder.post_layernorm.")
        fill(self._resampler, quantizer.plan.weights, _RESAMPLER)

    @torch.inference_mode()
    def start(self, pixels_FCHW: Tensor) -> Tensor:
        """Returns the patches before the first layer: pixels in [-1, 1], (F, 3, side, side), to (F, P, D)."""
        patches_FPD: Tensor = self._embeddings(pixels_FCHW)
        return patches_FPD

    @torch.inference_mode()
    def tokens(
        self,
        hidden: HiddenStates,
        formats: Mapping[str, str],
        take: Take,
        *,
        first: int = 0,
    ) -> None:
        """Computes video tokens.

        Args:
            hidden: the patches of each clip, (F, P, D); those before layer ``first`` are there.
            formats: for each layer to quantise, a key of ``FORMATS``; not those before ``first``.
            take: called with each clip's tokens, fp32 (M, width of the decoder).
            first: the tower's layer to begin with, at most their number.

        Raises:
            ConfigError: a layer in ``formats`` is before ``first`` or not in the video encoder.
        """
        unused, layer = dict(formats), self._encoder.get_submodule("layers.0")
        for index in range(first, self._num_layers):
            before, after = hidden(index), hidden(index + 1)
            prefix = f"{_VISION_LAYERS}{index}."
            fill(layer, self._quantizer.plan.weights, prefix)
            with simulated(layer, prefix, _taken(unused, prefix), self._quantizer):
                for at in range(len(before)):
                    after.write(at, self._encoder(inputs_embeds=before.read(at)).last_hidden_state)
        last, of_resampler = hidden(self._num_layers), _taken(unused, _RESAMPLER)
        _check_all_taken(unused, f"the video encoder from layer {first} on")
        with simulated(self._resampler, _RESAMPLER, of_resampler, self._quantizer):
            for at in range(len(last)):
                take(at, self._resampler(self._norm(last.read(at))[None])[0])


class SimulatedDecoder:
    """The decoder of a plan's model, one layer's weights at a time.

    Args:
        config: the model's.
        quantizer: its plan holds the weights.
    """

    def __init__(self, config: ModelConfig, quantizer: Quantizer) -> None:
        self._text, self._quantizer = config.text, quantizer
        self._language = one_layer(config.text)
        phi3: Any = self._language.model  # the transformers library, untyped
        self._norm, phi3.norm = phi3.norm, nn.Identity()  # it belongs after the last layer
        fill(self._norm, quantizer.plan.weights, "lang_model.model.norm.")

    @torch.inference_mode()
    def start(self, embeds_LD: Tensor) -> Tensor:
        """Returns the hidden states before the first layer, fp32 (L, D), of a prompt's embeddings (L, D)."""
        rotation_DD = self._quantizer.plan.input_rotation_DD
        return embeds_LD.float() if rotation_DD is None else embeds_LD.float() @ rotation_DD

    @torch.inference_mode()
    def logits(
        self,
        hidden: HiddenStates,
        positions: Sequence[Sequence[int]],
        formats: Mapping[str, str],
        take: Take,
        *,
        first: int = 0,
    ) -> None:
        """Computes logits without a cache.

        Args:
            hidden: those of each prompt, (L, D); those before layer ``first`` are there.
            positions: for each prompt, the N positions whose logits to compute.
            formats: for each layer to quantise, a key of ``FORMATS``; not those before ``first``.
            take: called with each prompt's logits, fp32 (N, V).
            first: the layer to begin with, at most their number.

        Raises:
            ConfigError: a layer in ``formats`` is before ``first`` or not in the decoder.
        """
        unused, layer = dict(formats), self._language.get_submodule("model.layers.0")
        for index in range(first, self._text.num_layers):
            before, after = hidden(index), hidden(index + 1)
            prefix = f"{_DECODER_LAYERS}{index}."
            fill(layer, self._quantizer.plan.weights, prefix)
            with simulated(layer, prefix, _taken(unused, prefix), self._quantizer):
                for at in range(len(before)):
                    after.write(at, self._language.hidden(before.read(at)[None])[0])
        last, head_format = hidden(self._text.num_layers), unused.pop(HEAD, None)
        _check_all_taken(unused, f"the decoder from layer {first} on")
        head = self._head(head_format)
        for at, rows in enumerate(positions):
            take(at, head(self._norm(last.read(at)[list(rows)])))

    def _head(self, form: str | None) -> Callable[[Tensor], Tensor]:
        weights = self._quantizer.plan.weights
        matrix_VD, bias_V = head_matrix(weights, self._text), head_bias(weights, self._text)
        if form is None:
            return lambda x_ND: x_ND @ matrix_VD.T + bias_V
        round_inputs = self._quantizer.rounding(HEAD, matrix_VD.shape[1], form)
        quantized_VD = self._quantizer.weight(HEAD, matrix_VD, form)
        return lambda x_ND: round_inputs(x_ND) @ quantized_VD.T + bias_V


def _taken(formats: dict[str, str], prefix: str) -> dict[str, str]:
    """Takes the layers that begin with ``prefix`` out of ``formats``."""
    return {name: formats.pop(name) for name in list(formats) if name.startswith(prefix)}


def _check_all_taken(unused: Mapping[str, str], where: str) -> None:
    if unused:
        raise ConfigError(f"{where} has no {', '.join(sorted(unused))}; name layers as `linear_layers` does")
