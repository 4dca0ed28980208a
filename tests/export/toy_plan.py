"""The simplest plan: weights as they are, nearest rounding, and ranges from inputs that a test gives."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from blip3v.calibration.layers import HEAD
from blip3v.calibration.quantized import QuantizedMatrix, group_of, nearest, scales_of
from blip3v.model import Blip3Video
from blip3v.model.language import SplitHead


class ToyPlan:
    """See ``Plan``."""

    def __init__(self, model: Blip3Video, run: Callable[[], object], rotation_DD: Tensor | None = None) -> None:
        self.weights = model.state_dict()
        self.input_rotation_DD = rotation_DD
        self._rows: defaultdict[str, list[Tensor]] = defaultdict(list)
        with _inputs(model, self._rows), torch.inference_mode():
            run()

    def activation_scale(self, layer: str) -> float:
        return float(self.rows(layer).abs().max()) / 127

    def quantize(self, layer: str, weight_NK: Tensor, *, bits: int, group_size: int | None) -> QuantizedMatrix:
        return nearest(weight_NK, scales_of(weight_NK, bits, group_size), bits, group_size)

    def rows(self, layer: str) -> Tensor:
        return torch.cat(self._rows[layer])


@contextmanager
def _inputs(model: nn.Module, rows: defaultdict[str, list[Tensor]]) -> Iterator[None]:
    hooks = []
    for name, module in linears(model):

        def keep(_: nn.Module, inputs: tuple[Tensor, ...], outputs: object, name: str = name) -> None:
            rows[name].append(inputs[0].flatten(0, -2))

        hooks.append(module.register_forward_hook(keep))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def linears(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of all linear layers by name."""
    for name, module in model.named_modules():
        if isinstance(module, SplitHead):
            yield HEAD, module
        elif isinstance(module, nn.Linear) and not name.startswith(f"{HEAD}."):
            yield name, module


def simulate(
    model: Blip3Video, plan: ToyPlan, formats: dict[str, str], group_size: int | None, *, round_inputs: bool = True
) -> None:
    """Makes ``model`` compute as an engine computes the quantised graph: rounded weights, and inputs if they are."""
    for name, module in linears(model):
        form = formats.get(name, "float32")
        weight_NK = matrix(module)
        if form == "float16-stored":
            set_matrix(module, weight_NK.half().float())
        elif form != "float32":
            size = None if form == "int8" else group_of(weight_NK.shape[1], group_size or 0)
            bits = 4 if form == "int4-block" else 8
            set_matrix(module, plan.quantize(name, weight_NK, bits=bits, group_size=size).dequantized())
            scale = plan.activation_scale(name) if size is None else None
            if round_inputs:
                module.register_forward_pre_hook(partial(_round_input, scale, size))


def _round_input(scale: float | None, size: int | None, _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    (x,) = inputs
    if scale is not None:
        return (x / scale).round().clamp(-128, 127) * scale
    assert size is not None
    num_inputs = x.shape[-1]
    groups = torch.nn.functional.pad(x, (0, -num_inputs % size)).view(*x.shape[:-1], -1, size)
    scales = (groups.abs().amax(-1, keepdim=True) / 127).clamp_min(1e-30)
    return ((groups / scales).round() * scales).flatten(-2)[..., :num_inputs]


def matrix(module: nn.Module) -> Tensor:
    return module.matrix()[0] if isinstance(module, SplitHead) else module.get_parameter("weight")


def set_matrix(module: nn.Module, weight_NK: Tensor) -> None:
    with torch.no_grad():
        if isinstance(module, SplitHead):
            module.weight[: module.num_base_tokens].copy_(weight_NK[: module.num_base_tokens])
            module.additional_fc.weight.copy_(weight_NK[module.num_base_tokens :])
        else:
            module.get_parameter("weight").copy_(weight_NK)
