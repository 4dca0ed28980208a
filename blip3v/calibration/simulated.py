"""The PyTorch reference with chosen layers quantised in simulation: in floats, as the integers would compute it.

A layer's weight is replaced by what its integers stand for, and its inputs are rounded as the engine rounds them; the
sums of its products are fp32. All other layers are fp32. The decoder holds one layer's weights at a time. Not here:
how integers are chosen (``plan.py``).
"""

# Shapes: N outputs, K inputs, F frames, M video tokens, L tokens, P positions, D width, V logits.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from blip3v.calibration.layers import HEAD
from blip3v.calibration.plan import Plan
from blip3v.calibration.quantized import group_of, largest_value
from blip3v.config import ModelConfig
from blip3v.errors import ConfigError
from blip3v.model.language import head_bias, head_matrix
from blip3v.model.layerwise import LayerwiseDecoder
from blip3v.model.weights import empty_model, fill

__all__ = [
    "FORMATS",
    "Quantizer",
    "SimulatedDecoder",
    "SimulatedFormat",
    "SimulatedVideoEncoder",
    "rounded",
    "simulated",
]

_LAYER = "lang_model.model.layers."
_INPUT_BITS = 8


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
        """
        form = FORMATS[name]
        if form.bits is None:
            return weight_NK.half().float()
        size = group_of(weight_NK.shape[1], self._group_size) if form.in_groups else None
        return self.plan.quantize(layer, weight_NK, bits=form.bits, group_size=size).dequantized()

    def rounding(self, layer: str, num_inputs: int, name: str) -> Callable[[Tensor], Tensor]:
        """Returns the function that rounds the layer's inputs, (..., K), as the format does."""
        form = FORMATS[name]
        if form.inputs == "static":
            scale = torch.tensor(self.plan.activation_scale(layer))
            return lambda x: rounded(x, scale)
        if form.inputs == "block":
            size = group_of(num_inputs, self._group_size)
            return lambda x: _rounded_in_blocks(x, size)
        return lambda x: x


def rounded(x: Tensor, scale: Tensor) -> Tensor:
    """Rounds to the nearest multiple of ``scale`` among those of 8 bits, [-127, 127]."""
    top = largest_value(_INPUT_BITS)
    return (x / scale).round().clamp(-top, top) * scale


def _rounded_in_blocks(x: Tensor, size: int) -> Tensor:
    """Rounds each block of ``size`` consecutive inputs of a token to 8 bits, with its largest value as the range."""
    num_inputs = x.shape[-1]
    blocks = nn.functional.pad(x, (0, -num_inputs % size)).unflatten(-1, (-1, size))
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    scale = torch.where(largest > 0, largest / largest_value(_INPUT_BITS), torch.ones(()))
    return rounded(blocks, scale).flatten(-2)[..., :num_inputs]


@contextmanager
def simulated(modules: Mapping[str, nn.Module], formats: Mapping[str, str], quantizer: Quantizer) -> Iterator[None]:
    """Inside the block, linear modules compute in their formats; afterwards they are as before.

    Args:
        modules: linear modules by the name of their layer; may hold others.
        formats: for each layer to quantise, a key of ``FORMATS``.
        quantizer: gives the weights and rounds the inputs.
    """
    hooks, exact = [], {}
    try:
        for name, form in formats.items():
            module = modules[name]
            assert isinstance(module, nn.Linear), "linear_layers names linear modules"
            exact[name] = module.weight
            weight_NK = quantizer.weight(name, module.weight.detach(), form)
            module.weight = nn.Parameter(weight_NK, requires_grad=False)
            hooks.append(module.register_forward_pre_hook(_rounds(quantizer.rounding(name, module.in_features, form))))
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for name, weight in exact.items():
            modules[name].weight = weight


def _rounds(function: Callable[[Tensor], Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], tuple[Tensor, ...]]:
    return lambda module, inputs: (function(inputs[0]), *inputs[1:])


class SimulatedVideoEncoder:
    """The video encoder of a plan's model, in memory as a whole.

    Args:
        config: the model's.
        quantizer: its plan holds the weights.
    """

    def __init__(self, config: ModelConfig, quantizer: Quantizer) -> None:
        self._model, self._quantizer = empty_model(config), quantizer
        for part in ("vision_encoder", "vision_tokenizer"):
            fill(self._model.get_submodule(part), quantizer.plan.weights, f"{part}.")
        self._modules = dict(self._model.named_modules())

    @torch.inference_mode()
    def tokens(self, clip_FCHW: NDArray[np.float32], formats: Mapping[str, str]) -> Tensor:
        """Computes a clip's video tokens: pixels in [-1, 1], (F, 3, side, side), to fp32 (M, D).

        Args:
            clip_FCHW: the clip.
            formats: for each layer to quantise, a key of ``FORMATS``.
        """
        return self.all_tokens([clip_FCHW], formats)[0]

    @torch.inference_mode()
    def all_tokens(self, clips: Sequence[NDArray[np.float32]], formats: Mapping[str, str]) -> list[Tensor]:
        """``tokens`` of every clip; the layers are quantised once."""
        with simulated(self._modules, formats, self._quantizer):
            return [self._model.encode_video(torch.from_numpy(clip)[None])[0] for clip in clips]


class SimulatedDecoder:
    """The decoder of a plan's model, one layer's weights at a time.

    Args:
        config: the model's.
        quantizer: its plan holds the weights.
    """

    def __init__(self, config: ModelConfig, quantizer: Quantizer) -> None:
        self._text, self._quantizer = config.text, quantizer
        self._layers = LayerwiseDecoder(config.text, quantizer.plan.weights)

    @torch.inference_mode()
    def start(self, prompt_LD: NDArray[np.floating]) -> Tensor:
        """Returns the hidden states before the first layer, (1, L, D), of a prompt's embeddings (L, D)."""
        x_1LD = torch.from_numpy(prompt_LD.astype(np.float32))[None]
        rotation_DD = self._quantizer.plan.input_rotation_DD
        return x_1LD if rotation_DD is None else x_1LD @ rotation_DD

    @torch.inference_mode()
    def logits(
        self,
        hidden: Sequence[Tensor],
        positions: Sequence[Sequence[int]],
        formats: Mapping[str, str],
        *,
        first: int = 0,
        before_layer: Callable[[int, Sequence[Tensor]], None] = lambda index, hidden: None,
    ) -> list[Tensor]:
        """Computes logits without a cache.

        Args:
            hidden: the hidden states of each prompt before layer ``first``, (1, L, D).
            positions: for each prompt, the P positions whose logits to return.
            formats: for each layer to quantise, a key of ``FORMATS``; not those before ``first``.
            first: the layer to begin with, at most the number of layers.
            before_layer: called with each layer's index and the hidden states before it, then with the number of layers
                and those before the final norm.

        Returns:
            (P, V) for each prompt, fp32.

        Raises:
            ConfigError: a layer in ``formats`` is before ``first`` or not in the decoder.
        """
        unused = dict(formats)
        for index in range(first, self._text.num_layers):
            before_layer(index, hidden)
            prefix = f"{_LAYER}{index}."
            own = {name: unused.pop(name) for name in list(unused) if name.startswith(prefix)}
            modules = {prefix + name: module for name, module in self._layers.load(index).named_modules()}
            with simulated(modules, own, self._quantizer):
                hidden = [self._layers.compute(x_1LD) for x_1LD in hidden]
        before_layer(self._text.num_layers, hidden)
        rows = [self._layers.normed(x_1LD, at) for x_1LD, at in zip(hidden, positions, strict=True)]
        logits = self._head(rows, unused.pop(HEAD, None))
        if unused:
            raise ConfigError(f"the decoder from layer {first} on has no {', '.join(sorted(unused))}")
        return logits

    def _head(self, rows: Sequence[Tensor], form: str | None) -> list[Tensor]:
        weights = self._quantizer.plan.weights
        matrix_VD, bias_V = head_matrix(weights, self._text), head_bias(weights, self._text)
        if form is None:
            return [x_PD @ matrix_VD.T + bias_V for x_PD in rows]
        round_inputs = self._quantizer.rounding(HEAD, matrix_VD.shape[1], form)
        matrix_VD = self._quantizer.weight(HEAD, matrix_VD, form)
        return [round_inputs(x_PD) @ matrix_VD.T + bias_V for x_PD in rows]
