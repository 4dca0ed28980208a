"""One model in several processes: a full copy in each, or a shard of every tensor in each (FSDP).

accelerate starts the processes, reduces losses and clips gradients. It shards models on accelerators only, so this
module calls torch's ``fully_shard``, as accelerate would, and the same code runs, and is tested, on CPUs. Each layer of
the two towers is a group that is gathered when it runs; everything else is gathered once per step, since a loss calls
parts of the model outside any module's ``forward``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

__all__ = ["LAYERS", "copy_like", "gather", "load_weights", "shard"]

LAYERS = (SiglipEncoderLayer, Phi3DecoderLayer)


def shard(objective: nn.Module, device: torch.device, *, bf16: bool) -> None:
    """Shards every parameter over the processes, in place. Parameters must be frozen before that.

    Args:
        objective: computes the loss; its parameters may be placeholders.
        device: of this process.
        bf16: whether layers compute in bf16; the shards and the sums of their gradients stay fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else None
    for module in [*(module for module in objective.modules() if isinstance(module, LAYERS)), objective]:
        fully_shard(module, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())


def load_weights(objective: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Loads every parameter and persistent buffer that ``weights`` contains, as fp32, reading one at a time.

    Args:
        objective: made from a model with placeholder parameters (``empty_model``), sharded or not.
        weights: by the objective's names. Tensors that are not among them must already be loaded.
        device: where the tensors go.
    """
    for name, parameter in list(objective.named_parameters()):
        owner, leaf = _owner(objective, name)
        if name in weights:
            loaded = copy_like(parameter, weights[name], device)
            setattr(owner, leaf, nn.Parameter(loaded, requires_grad=parameter.requires_grad))
    stored = objective.state_dict()
    for name, buffer in objective.named_buffers():
        if name in stored and name in weights:
            buffer.copy_(weights[name])


def copy_like(parameter: Tensor, full: Tensor, device: torch.device | None = None) -> Tensor:
    """Copies ``full`` as fp32 in the layout of ``parameter``: only this process's shard if ``parameter`` is sharded.

    Args:
        parameter: the tensor whose layout is used.
        full: a tensor of the same shape, on any device.
        device: of the copy; None: the parameter's.
    """
    target = parameter.device if device is None else device
    assert full.shape == parameter.shape, f"shape {tuple(full.shape)}, expected {tuple(parameter.shape)}"
    copied = torch.empty(full.shape, dtype=torch.float32, device=target).copy_(full.detach())
    if not isinstance(parameter, DTensor):
        return copied
    # Without communication: each process takes its shard from the tensor that it read itself.
    return distribute_tensor(copied, parameter.device_mesh, parameter.placements, src_data_rank=None)


def gather(tensor: Tensor) -> Tensor:
    """Gathers a tensor from all processes onto the CPU; every process must call this function."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
