"""The released form at a small size: the same files as in the release, with weights that take little space and time.

``write_small(folder)`` writes one in less than 0.1 s. What opens it needs the preset of the same size: the fixture
``small_preset`` (``conftest.py``), or ``with shrunk_preset()`` outside tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from released_files import NUM_BASE_TOKENS, write_released_tokenizer
from synthetic_checkpoint import CONFIG, PREPROCESSOR, Shapes, with_form, write_checkpoint
from torch import Tensor

from blip3v.config import PRESETS, ModelConfig, preset
from blip3v.model.weights import random_tensor, state_shapes

RELEASED = preset("xgen-mm-vid")
WIDTH, SIDE, NUM_ROWS = 48, 28, NUM_BASE_TOKENS + 52
TEXT = {
    **{"model_type": "phi3", "initial_tokenizer_len": NUM_BASE_TOKENS, "vocab_size": NUM_ROWS, "hidden_size": 64},
    **{"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4},
    **{"sliding_window": 40, "torch_dtype": "bfloat16", "rope_scaling": None},
}
EMBEDDING = "lang_model.model.embed_tokens.weight"
SPLIT = (EMBEDDING, "lang_model.lm_head.weight", "lang_model.lm_head.bias")


def small_preset() -> ModelConfig:
    vision = dataclasses.replace(
        RELEASED.vision, image_size=SIDE, hidden_size=WIDTH, intermediate_size=80, num_layers=2
    )
    return dataclasses.replace(
        RELEASED,
        vision=vision,
        resampler=dataclasses.replace(RELEASED.resampler, depth=2),
        text=dataclasses.replace(
            RELEASED.text,
            vocab_size=NUM_ROWS,
            num_base_tokens=NUM_BASE_TOKENS,
            hidden_size=64,
            intermediate_size=96,
            num_layers=2,
            num_heads=4,
            num_kv_heads=4,
        ),
    )


@contextmanager
def shrunk_preset() -> Iterator[None]:
    """Shrinks the preset of the released model while the block runs."""
    PRESETS[RELEASED.name] = small_preset()
    try:
        yield
    finally:
        PRESETS[RELEASED.name] = RELEASED


def small_shapes(form: str = "gttm") -> Shapes:
    """The released names at the small size, including the unused ones."""
    head = {
        "probe": (1, 1, WIDTH),
        "attention.in_proj_weight": (3 * WIDTH, WIDTH),
        "attention.in_proj_bias": (3 * WIDTH,),
        "attention.out_proj.weight": (WIDTH, WIDTH),
        "attention.out_proj.bias": (WIDTH,),
        "layernorm.weight": (WIDTH,),
        "layernorm.bias": (WIDTH,),
        "mlp.fc1.weight": (80, WIDTH),
        "mlp.fc1.bias": (80,),
        "mlp.fc2.weight": (WIDTH, 80),
        "mlp.fc2.bias": (WIDTH,),
    }
    unused: Shapes = {f"vision_encoder.head.{name}": shape for name, shape in head.items()}
    return with_form(state_shapes(small_preset()) | unused, form, WIDTH)


def made_up(name: str, shape: tuple[int, ...]) -> Tensor:
    return random_tensor(name, shape, seed=5)


def write_small(folder: Path, form: str = "gttm", *, dtype: str = "F32", make=made_up) -> Path:
    config = {**CONFIG, "text_config": TEXT}
    processor = {**PREPROCESSOR, "size": [SIDE, SIDE]}
    write_checkpoint(
        folder, small_shapes(form), make=make, dtype=dtype, shard_bytes=400_000, config=config, preprocessor=processor
    )
    return write_released_tokenizer(folder)


def live(name: str, value: Tensor) -> Tensor:
    return value[:NUM_BASE_TOKENS] if name in SPLIT else value


def assert_same_weights(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    assert set(left) == set(right)
    for name in left:
        assert torch.equal(left[name], right[name]), name


def state(form: str = "gttm") -> dict[str, Tensor]:
    return {name: made_up(name, shape) for name, shape in small_shapes(form).items()}
