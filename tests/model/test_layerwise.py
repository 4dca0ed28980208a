"""The reference that holds one layer at a time, against the complete model of the transformers library."""

from __future__ import annotations

import numpy as np
import pytest
from export_models import WINDOWED, embeddings, small_config, uncached_logits

from blip3v.model.layerwise import layerwise_logits
from blip3v.model.weights import random_model


@pytest.mark.parametrize("text", [{}, WINDOWED], ids=["full", "windowed"])
def test_equals_the_whole_model_for_prompts_of_several_lengths(text: dict[str, int]) -> None:
    model = random_model(small_config(**text))
    config = model.config.text
    prompts = [embeddings(config, length, seed=length) for length in (1, 9, 17)]
    at = [[0], [3, 8], range(17)]
    done: list[tuple[int, int]] = []
    got = layerwise_logits(config, model.state_dict(), prompts, at, lambda *layers: done.append(layers))
    for prompt_LD, positions, logits_NV in zip(prompts, at, got, strict=True):
        expected_LV = uncached_logits(model, prompt_LD)
        np.testing.assert_allclose(logits_NV, expected_LV[list(positions)], atol=2e-5, rtol=0)
    assert done == [(1, 2), (2, 2)]
