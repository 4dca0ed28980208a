"""Smoothing: a channel with large inputs is divided by a factor, and the weights that it meets are multiplied by it.

SmoothQuant (Xiao et al. 2022): with s[k] = max|X[k]| ** alpha / max|W[k]| ** (1 - alpha), X diag(1/s) and W diag(s)
have the same product, and both are easier to round. For weights alone the same factors serve as those of AWQ (Lin et
al. 2023). 1/s is folded where that is exact:

    decoder        norm -> qkv, norm -> gate_up, v -> o, up -> down, norm -> head
    vision         norm -> q, k, v, norm -> fc1, v -> out
    resampler      norm -> feed-forward

alpha is searched for every layer, with the integers that it will have, for the least error of its outputs.
"""

# Shapes: R rows, N outputs, K inputs, G KV heads, H heads.

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from blip3v.calibration.fake import LayerFormat, on_grid
from blip3v.calibration.layers import HEAD
from blip3v.calibration.ranges import row_weights, static_scale
from blip3v.calibration.statistics import LayerStatistics
from blip3v.calibration.transformed import Changed, InputChange, WeightChange, layer_weight, weight_names, with_inputs
from blip3v.config import ModelConfig, TextConfig
from blip3v.model.temporal import resampler_depth

__all__ = ["Fold", "factors", "folds", "smooth"]

_ALPHAS = tuple(i / 20 for i in range(21))
_LARGEST_FACTOR = 2.0**12  # keeps what is folded inside half precision
_SMALLEST_SHARE = 1e-5  # of the largest channel: smaller ones count as this
_MOST_OUTPUTS, _MOST_ROWS = 1024, 512  # that the search looks at


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Layers that share their inputs, and the weights that are divided by the factors of these.

    Attributes:
        layers: their columns are multiplied.
        divided: weights by name, and the first of their rows that are divided; the others follow it.
        num_heads: heads that the inputs consist of.
        num_kv_heads: heads that the factors belong to, each shared by ``num_heads / num_kv_heads``.
        relative: whether an output counts relative to its own size. Where layers write to the residual stream, all
            outputs have the same unit.
    """

    layers: tuple[str, ...]
    divided: Mapping[str, int] = field(default_factory=dict)
    num_heads: int = 1
    num_kv_heads: int = 1
    relative: bool = True

    def shared(self, largest_K: Tensor) -> Tensor:
        """Returns the largest values of the channels that factors belong to, from those of the inputs."""
        return largest_K.view(self.num_kv_heads, self.num_heads // self.num_kv_heads, -1).amax(dim=1).flatten()

    def spread(self, factors: Tensor) -> Tensor:
        """Returns a factor for each input, from those of the channels."""
        repeats = self.num_heads // self.num_kv_heads
        return factors.view(self.num_kv_heads, 1, -1).expand(-1, repeats, -1).flatten()


def folds(config: ModelConfig) -> tuple[tuple[Fold, ...], tuple[Fold, ...]]:
    """Returns what can be folded, in two steps: into the rows of weights, then into norms.

    The second step looks at the weights that the first has changed.
    """
    inner, outer = [], []
    for index in range(config.text.num_layers):
        into_rows, into_norms = _decoder_folds(f"lang_model.model.layers.{index}", config.text)
        inner += into_rows
        outer += into_norms
    outer.append(Fold(layers=(HEAD,), divided={"lang_model.model.norm.weight": 0}))
    for index in range(config.vision.num_layers):
        layer = f"vision_encoder.encoder.layers.{index}"
        attention = f"{layer}.self_attn"
        values = {f"{attention}.v_proj.weight": 0, f"{attention}.v_proj.bias": 0}
        inner.append(Fold(layers=(f"{attention}.out_proj",), divided=values, relative=False))
        projections = tuple(f"{attention}.{name}_proj" for name in "qkv")
        outer.append(Fold(layers=projections, divided=_norm(f"{layer}.layer_norm1")))
        outer.append(Fold(layers=(f"{layer}.mlp.fc1",), divided=_norm(f"{layer}.layer_norm2")))
    for index in range(resampler_depth(config)):
        feed_forward = f"vision_tokenizer.layers.{index}.1"
        outer.append(Fold(layers=(f"{feed_forward}.1",), divided=_norm(f"{feed_forward}.0")))
    return tuple(inner), tuple(outer)


def smooth(
    model: Changed, steps: Iterable[Fold], formats: Callable[[str], LayerFormat | None], text: TextConfig
) -> Changed:
    """Applies factors, each of which is searched when it is needed first.

    Args:
        model: the model.
        steps: what to fold; no two of them may change the same weights' rows, or the same layer's columns.
        formats: how a layer is quantised; None: it is left alone.
        text: the decoder's shape.
    """
    weights: dict[str, WeightChange] = {}
    inputs: dict[str, InputChange] = {}
    for fold in steps:
        chosen = formats(fold.layers[0])
        if chosen is None:
            continue
        found = functools.cache(functools.partial(_search, model, fold, chosen, text))
        for layer in fold.layers:
            inputs[layer] = functools.partial(_narrowed, fold, found)
            for name in weight_names(layer):
                weights[name] = _then(weights.get(name), functools.partial(_multiplied, fold, found))
        for name, first in fold.divided.items():
            weights[name] = _then(weights.get(name), functools.partial(_divided, found, first))
    return model.changed(weights, inputs)


def factors(largest_inputs_K: Tensor, largest_weights_K: Tensor, alpha: float) -> Tensor:
    """Returns the factors of SmoothQuant around 1, positive and finite.

    Args:
        largest_inputs_K: the largest absolute value of each input.
        largest_weights_K: the largest absolute value of the weights that meet it.
        alpha: in [0, 1]; 1 makes all inputs equally large, 0 all weights.
    """
    inputs_K, weights_K = _floored(largest_inputs_K), _floored(largest_weights_K)
    logarithms_K = alpha * inputs_K.log2() - (1 - alpha) * weights_K.log2()
    used_K = largest_inputs_K > 0
    if not bool(used_K.any()):
        return torch.ones_like(largest_inputs_K)
    # The middle stays where it is; a mean would follow a few channels of any size.
    centred_K = torch.exp2(logarithms_K - logarithms_K[used_K].median())
    return torch.where(used_K, centred_K.clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR), torch.ones(()))


def _floored(largest_K: Tensor) -> Tensor:
    floor = float(largest_K.max()) * _SMALLEST_SHARE
    return largest_K.clamp(min=floor) if floor > 0 else torch.ones_like(largest_K)


@torch.inference_mode()
def _search(model: Changed, fold: Fold, chosen: LayerFormat, text: TextConfig) -> Tensor:
    """Returns the factors whose layers have the least error; all 1 if nothing is better than that."""
    found = _fewer_rows(model.statistics.layer(fold.layers[0]))
    weight_NK = torch.cat([layer_weight(model.weights, layer, text) for layer in fold.layers])
    largest_inputs = fold.shared(found.absmax_K)
    largest_weights = fold.shared(weight_NK.abs().amax(dim=0))
    norms_K = weight_NK.square().sum(dim=0)
    weight_NK = weight_NK[:: -(-len(weight_NK) // _MOST_OUTPUTS)]
    outputs_RN = found.rows_NK @ weight_NK.T
    counts_R = row_weights(found)
    size_N = counts_R @ outputs_RN**2
    output_weights_N = 1 / size_N.clamp(min=float(size_N.max()) * 1e-12 + 1e-30) if fold.relative else None
    best, least = torch.ones_like(largest_inputs), torch.inf
    tried = [best, *(factors(largest_inputs, largest_weights, alpha) for alpha in _ALPHAS)]
    for candidate in tried:
        factors_K = fold.spread(candidate)
        scaled = _scaled(found, factors_K)
        rows_RK = scaled.rows_NK
        if chosen.ranges is not None:
            rows_RK = on_grid(rows_RK, static_scale(scaled, chosen.ranges, norms_K * factors_K**2))
        error_RN = rows_RK @ chosen.rounded(weight_NK * factors_K).T - outputs_RN
        error_N = counts_R @ error_RN.square()
        error = float(error_N.sum() if output_weights_N is None else error_N @ output_weights_N)
        if error < least:
            best, least = candidate, error
    return best


def _fewer_rows(found: LayerStatistics) -> LayerStatistics:
    """Keeps the extreme rows and the first of the others, which are random."""
    return dataclasses.replace(found, rows_NK=found.rows_NK[: found.num_extreme + _MOST_ROWS])


def _narrowed(fold: Fold, found: Callable[[], Tensor], statistics: LayerStatistics) -> LayerStatistics:
    return _scaled(statistics, fold.spread(found()))


def _scaled(found: LayerStatistics, factors_K: Tensor) -> LayerStatistics:
    return with_inputs(found, lambda x: x / factors_K, diagonal=True)


def _multiplied(fold: Fold, found: Callable[[], Tensor], weight: Tensor) -> Tensor:
    return weight * fold.spread(found())


def _divided(found: Callable[[], Tensor], first: int, weight: Tensor) -> Tensor:
    factors = found().view(-1, *[1] * (weight.dim() - 1))
    changed = weight.clone()
    changed[first : first + len(factors)] /= factors
    return changed


def _then(before: WeightChange | None, after: WeightChange) -> WeightChange:
    if before is None:
        return after
    return lambda weight: after(before(weight))


def _decoder_folds(layer: str, text: TextConfig) -> tuple[list[Fold], list[Fold]]:
    qkv, o = f"{layer}.self_attn.qkv_proj", f"{layer}.self_attn.o_proj"
    gate_up, down = f"{layer}.mlp.gate_up_proj", f"{layer}.mlp.down_proj"
    first_value = (text.num_heads + text.num_kv_heads) * text.head_dim
    into_rows = [
        Fold(
            layers=(o,),
            divided={f"{qkv}.weight": first_value},
            num_heads=text.num_heads,
            num_kv_heads=text.num_kv_heads,
            relative=False,
        ),
        Fold(layers=(down,), divided={f"{gate_up}.weight": text.intermediate_size}, relative=False),
    ]
    into_norms = [
        Fold(layers=(qkv,), divided={f"{layer}.input_layernorm.weight": 0}),
        Fold(layers=(gate_up,), divided={f"{layer}.post_attention_layernorm.weight": 0}),
    ]
    return into_rows, into_norms


def _norm(name: str) -> dict[str, int]:
    return {f"{name}.weight": 0, f"{name}.bias": 0}
