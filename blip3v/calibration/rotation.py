"""Rotation of the decoder's residual stream and of its values: an outlier is spread over all channels.

QuaRot (Ashkboos et al. 2024) and SpinQuant (Liu et al. 2024), the rotations that cost nothing when the model runs:

    R1  the residual stream: x -> x R1. Norms without gains commute with it, so gains are folded first:
        W of qkv, gate_up, head -> W diag(gain) R1;  W of o, down -> R1^T W;  gain -> 1
    R2  the values of each head: rows of v -> R2^T v;  columns of o -> o R2

Before R2 each channel of v and its columns of o are made equally large, which is exact too: a channel that is large
only because its column is small would otherwise drown the others of its head (equalisation of Nagel et al. 2019).

R1 enters as one matrix at the decoder's input, so that embeddings and video tokens keep their basis. A rotation is
diag(signs) H / sqrt(D) with a Hadamard matrix H of order 2^k, 12 * 2^k or 20 * 2^k, else a random orthogonal matrix.
"""

# Shapes: D width of what is rotated, P * Q = D.

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from blip3v.calibration.layers import HEAD
from blip3v.calibration.statistics import LayerStatistics
from blip3v.calibration.transformed import Changed, InputChange, WeightChange, weight_names, with_inputs
from blip3v.config import TextConfig
from blip3v.errors import CalibrationError

__all__ = ["Rotation", "rotate"]

_PALEY_PRIMES = (11, 19)  # Hadamard matrices of order 12 and 20
_SEED = "blip3v rotation"


class Rotation:
    """An orthogonal matrix R of order ``size``, the same for the same size and name.

    Args:
        size: D.
        name: seeds its signs.
    """

    def __init__(self, size: int, name: str) -> None:
        generator = _generator(name)
        self.size = size
        self._factors = _hadamard_factors(size)
        if self._factors is None:
            normal_DD = torch.randn(size, size, dtype=torch.float64, generator=generator)
            self._matrix_DD = torch.linalg.qr(normal_DD)[0].float()
        else:
            self._signs_D = torch.randint(0, 2, (size,), generator=generator) * 2.0 - 1.0

    def __call__(self, x: Tensor) -> Tensor:
        """Returns ``x @ R``: (..., D) to (..., D), fp32."""
        if self._factors is None:
            return torch.matmul(x, self._matrix_DD)
        left_PP, right_QQ = self._factors
        x_PQ = torch.unflatten(x * self._signs_D, -1, (len(left_PP), len(right_QQ)))
        return torch.flatten(left_PP.T @ x_PQ @ right_QQ, -2)

    def matrix(self) -> Tensor:
        """Returns R, fp32 (D, D)."""
        return self(torch.eye(self.size))


def rotate(model: Changed, text: TextConfig) -> tuple[Changed, Tensor]:
    """Applies R1 and R2 to the decoder.

    Args:
        model: the model; its video encoder is left alone.
        text: the decoder's shape.

    Returns:
        The rotated model, and R1, fp32 (D, D), which its inputs are to be multiplied by from the right.

    Raises:
        CalibrationError: a norm has a gain of 0, which hides from the statistics what R1 spreads over all channels.
    """
    stream = Rotation(text.hidden_size, "R1")
    final_norm = "lang_model.model.norm.weight"
    _check_gain(model, final_norm)
    weights: dict[str, WeightChange] = {final_norm: torch.ones_like}
    inputs: dict[str, InputChange] = {HEAD: functools.partial(_inputs, model, final_norm, stream)}
    for name in weight_names(HEAD):
        weights[name] = functools.partial(_columns, model, final_norm, stream)
    for index in range(text.num_layers):
        block = f"lang_model.model.layers.{index}"
        heads = Rotation(text.head_dim, f"R2 {index}")
        qkv, o = f"{block}.self_attn.qkv_proj", f"{block}.self_attn.o_proj"
        gate_up, down = f"{block}.mlp.gate_up_proj", f"{block}.mlp.down_proj"
        for layer, norm in ((qkv, "input_layernorm"), (gate_up, "post_attention_layernorm")):
            gain = f"{block}.{norm}.weight"
            _check_gain(model, gain)
            weights[gain] = torch.ones_like
            weights[f"{layer}.weight"] = functools.partial(_columns, model, gain, stream)
            inputs[layer] = functools.partial(_inputs, model, gain, stream)
        balance = functools.cache(functools.partial(_balance, model, block, text))
        weights[f"{qkv}.weight"] = _both(weights[f"{qkv}.weight"], functools.partial(_values, text, heads, balance))
        weights[f"{o}.weight"] = _both(
            functools.partial(_mixed, text, heads, balance), functools.partial(_rows, stream)
        )
        weights[f"{down}.weight"] = functools.partial(_rows, stream)
        mixed = functools.partial(_mixed, text, heads, functools.partial(_inverse, balance))
        inputs[o] = functools.partial(with_inputs, change=mixed, diagonal=False)
    return model.changed(weights, inputs), stream.matrix()


def _check_gain(model: Changed, name: str) -> None:
    num_zeros = int((model.weights[name] == 0).sum())
    if num_zeros:
        raise CalibrationError(
            f"{name} is 0 in {num_zeros} of its channels, so calibration has not seen their values before the gain; "
            "rotation spreads these over all channels",
            remedy="leave `rotation` out",
        )


def _inverse(factors: Callable[[], Tensor]) -> Tensor:
    return 1 / factors()


def _both(first: WeightChange, second: WeightChange) -> WeightChange:
    return lambda weight: second(first(weight))


def _columns(model: Changed, gain: str, rotation: Rotation, weight: Tensor) -> Tensor:
    """``weight @ diag(gain) @ R``."""
    return rotation(weight * model.weights[gain].float())


def _inputs(model: Changed, gain: str, rotation: Rotation, found: LayerStatistics) -> LayerStatistics:
    """What a norm gives before its gain, rotated."""
    inverse_D = 1 / model.weights[gain].float()
    return with_inputs(found, lambda x: rotation(x * inverse_D), diagonal=False)


def _rows(rotation: Rotation, weight: Tensor) -> Tensor:
    """``R^T @ weight``."""
    return rotation(weight.T).T.contiguous()


def _per_head(rotation: Rotation, x: Tensor) -> Tensor:
    """Rotates each head of the last axis."""
    return rotation(torch.unflatten(x, -1, (-1, rotation.size))).flatten(-2)


def _balance(model: Changed, block: str, text: TextConfig) -> Tensor:
    """Returns what to divide the channels of v by, (G * K,), for each to be as large as its columns of o."""
    gain_D = model.weights[f"{block}.input_layernorm.weight"].float()
    qkv = model.weights[f"{block}.self_attn.qkv_proj.weight"]
    values = (qkv[_first_value(text) :].float() * gain_D).norm(dim=1)
    columns = model.weights[f"{block}.self_attn.o_proj.weight"].float().norm(dim=0)
    shared = columns.view(text.num_kv_heads, -1, text.head_dim).norm(dim=1).flatten()
    used = (values > 0) & (shared > 0)
    return torch.where(used, (values / torch.where(used, shared, torch.ones(()))).sqrt(), torch.ones(()))


def _values(text: TextConfig, rotation: Rotation, balance: Callable[[], Tensor], qkv: Tensor) -> Tensor:
    """Balances and rotates the outputs of each head of v, the last rows of ``qkv``."""
    first = _first_value(text)
    balanced = qkv[first:] / balance()[:, None]
    return torch.cat((qkv[:first], _per_head(rotation, balanced.T).T))


def _mixed(text: TextConfig, rotation: Rotation, factors: Callable[[], Tensor], x: Tensor) -> Tensor:
    """Multiplies and rotates the last axis, which heads of values make up; query heads share those of a KV head."""
    repeats = text.num_heads // text.num_kv_heads
    spread = factors().view(text.num_kv_heads, 1, -1).expand(-1, repeats, -1).flatten()
    return _per_head(rotation, x * spread)


def _first_value(text: TextConfig) -> int:
    return (text.num_heads + text.num_kv_heads) * text.head_dim


def _hadamard_factors(size: int) -> tuple[Tensor, Tensor] | None:
    """Returns P and Q whose Kronecker product is orthogonal, of order ``size``; None: no order that is known here."""
    for left in (torch.ones(1, 1), *(_paley(prime) for prime in _PALEY_PRIMES)):
        power, rest = divmod(size, len(left))
        if not rest and power & (power - 1) == 0:
            return left / math.sqrt(len(left)), _sylvester(power) / math.sqrt(power)
    return None


def _sylvester(order: int) -> Tensor:
    matrix = torch.ones(1, 1)
    while len(matrix) < order:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix


def _paley(prime: int) -> Tensor:
    """Paley's first construction, of order ``prime + 1`` for a prime that is 3 modulo 4."""
    squares = {i * i % prime for i in range(1, prime)}
    signs = torch.tensor([0.0 if i == 0 else 1.0 if i in squares else -1.0 for i in range(prime)])
    at = torch.arange(prime)
    skew = torch.zeros(prime + 1, prime + 1)
    skew[0, 1:], skew[1:, 0] = 1.0, -1.0
    skew[1:, 1:] = signs[(at[:, None] - at[None]) % prime]
    return skew + torch.eye(prime + 1)


def _generator(name: str) -> torch.Generator:
    key = hashlib.sha256(f"{_SEED} {name}".encode()).digest()[:8]
    return torch.Generator().manual_seed(int.from_bytes(key, "big") >> 1)
