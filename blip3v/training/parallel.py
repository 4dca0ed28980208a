"""One model in several processes: a whole one in each, or a part of every tensor in each (FSDP).

accelerate starts the processes, joins losses and clips gradients. It splits a model on accelerators only, so torch's
``fully_shard``, which it would call, is called here: the same code runs, and is tested, on CPUs. Each layer of the two
towers is a group that is joined when it runs; everything else is joined once for a step, since a loss calls parts of
the model that are no module's ``forward``.
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

__all__ = ["LAYERS", "like", "put_weights", "split", "whole"]

LAYERS = (SiglipEncoderLayer, Phi3DecoderLayer)


def split(objective: nn.Module, device: torch.device, *, bf16: bool) -> None:
    """Gives each process a part of every parameter, in place. Which ones are frozen has to be settled before.

    Args:
        objective: what computes the loss; its parameters may be without memory.
        device: of this process.
        bf16: whether layers compute in bf16; the parts and the sums of their gradients stay fp32.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else None
    for module in [*(module for module in objective.modules() if isinstance(module, LAYERS)), objective]:
        fully_shard(module, mesh=mesh, mp_policy=policy or MixedPrecisionPolicy())


def put_weights(objective: nn.Module, weights: Mapping[str, Tensor], device: torch.device) -> None:
    """Gives every parameter and stored buffer that ``weights`` holds its tensor, as fp32; one is read at a time.

    Args:
        objective: from models without memory (``empty_model``), split or not.
        weights: by the objective's names. What they lack must be there already.
        device: where the tensors go.
    """
    for name, parameter in list(objective.named_parameters()):
        owner, leaf = _owner(objective, name)
        if name in weights:
            full = like(parameter, weights[name], device)
            setattr(owner, leaf, nn.Parameter(full, requires_grad=parameter.requires_grad))
    stored = objective.state_dict()
    for name, buffer in objective.named_buffers():
        if name in stored and name in weights:
            buffer.copy_(weights[name])


def like(parameter: Tensor, full: Tensor, device: torch.device | None = None) -> Tensor:
    """``full`` in memory of its own as fp32: this process's part of it where ``parameter`` is split.

    Args:
        parameter: whose form is taken.
        full: of the same shape, anywhere.
        device: where to; None: where the parameter is.
    """
    target = parameter.device if device is None else device
    assert full.shape == parameter.shape, f"{tuple(full.shape)} is given for {tuple(parameter.shape)}"
    copied = torch.empty(full.shape, dtype=torch.float32, device=target).copy_(full.detach())
    if not isinstance(parameter, DTensor):
        return copied
    # No process sends anything: each cuts its part out of what it read.
    return distribute_tensor(copied, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole(tensor: Tensor) -> Tensor:
    """The tensor joined from all processes, on the CPU; every process has to call."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf
