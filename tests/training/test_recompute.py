"""Gradient checkpointing keeps less for the backward pass, with the same loss and gradients, for every encoder."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from blip3v.config import preset
from blip3v.model.temporal import encoder_names, with_encoder
from blip3v.model.weights import random_model
from blip3v.training.batch import Batch
from blip3v.training.loop import Objective
from blip3v.training.recompute import recompute_activations


def batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 600, (2, 12), generator=generator)
    labels = torch.where(torch.arange(12) > 6, ids, -100)
    return Batch(
        ids_CL=ids,
        labels_CL=labels,
        question_CL=(torch.arange(12) > 3).long().expand(2, -1),
        image_position_C=torch.tensor([3, 3]),
        features_CTPD=torch.randn(2, 8, 64, 96, generator=generator),
    )


def kept_and_gradients(encoder: str, *, recompute: bool) -> tuple[int, float, dict[str, Tensor]]:
    """Bytes that the forward pass keeps besides the weights, the loss, and the gradients."""
    model = random_model(with_encoder(preset("tiny"), encoder)).requires_grad_(True)
    if recompute:
        recompute_activations(model)
    objective = Objective(model).train()
    weights = {x.untyped_storage().data_ptr() for x in model.parameters()}
    kept = dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = objective(batch())
    loss.backward()
    gradients = {name: x.grad for name, x in objective.named_parameters() if x.grad is not None}
    return sum(kept.values()), loss.item(), gradients


@pytest.mark.parametrize("encoder", encoder_names())
def test_checkpointing_changes_no_gradient_and_keeps_less(encoder: str) -> None:
    plain_bytes, plain_loss, plain = kept_and_gradients(encoder, recompute=False)
    less_bytes, loss, gradients = kept_and_gradients(encoder, recompute=True)
    assert loss == plain_loss
    assert gradients.keys() == plain.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-6, atol=1e-9, msg=name)
    assert less_bytes < 0.25 * plain_bytes
