"""Folders that look like the released ones: same names, shapes, dtype, shards, index and small files, made-up weights.

Names and shapes come from ``checkpoint_tensors.json`` and, for encoders that no known release has, from the tables
below; nothing here is taken from ``blip3v.model``. ``scripts/synthetic_checkpoint.py`` writes whole folders.
The tokenizer is not the real one: a small SentencePiece model with made-up pieces up to the released 32,000.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import pairwise
from math import prod
from pathlib import Path

import torch
from torch import Tensor

Shape = tuple[int, ...]
Shapes = dict[str, Shape]
Make = Callable[[str, Shape], Tensor]

PREFIX = "vlm."
TEMPORAL = "vision_tokenizer.temporal_encoder."
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SHARD_BYTES = 5 * 10**9  # the transformers library's limit when the release was saved
_MODULES = ("vision_encoder", "vision_tokenizer", "lang_model")
INDEX = "model.safetensors.index.json"

CONFIG = {
    "architectures": ["XGenMMModelForConditionalGeneration"],
    "model_type": "xgenmm",
    "torch_dtype": "float32",
    "transformers_version": "4.41.1",
    "text_config": {
        "model_type": "phi3",
        "initial_tokenizer_len": 32012,
        "sliding_window": 2047,
        "torch_dtype": "bfloat16",
    },
    "vision_encoder_config": {
        "model_type": "xgenmm_vision_encoder",
        "anyres_patch_sampling": False,
        "image_aspect_ratio": "pad",
    },
    "vision_tokenizer_config": {"model_type": "xgenmm_vision_tokenizer"},
}
PREPROCESSOR = {
    "image_processor_type": "Blip3ImageProcessor",
    "do_resize": True,
    "size": [384, 384],
    "resize_mode": "squash",
    "interpolation_mode": "bicubic",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "grids": None,
}
GENERATION = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000}


def released_shapes() -> Shapes:
    """The 768 tensors of the 128-token checkpoint, without ``vlm.``, in the order in which its modules are created."""
    table = json.loads(Path(__file__).with_name("checkpoint_tensors.json").read_text("utf-8"))
    shapes = {name.removeprefix(PREFIX): tuple(shape) for name, shape in table.items()}
    return dict(sorted(shapes.items(), key=_module))


def _module(item: tuple[str, Shape]) -> int:
    return _MODULES.index(item[0].split(".")[0])


def with_form(shapes: Mapping[str, Shape], form: str, width: int = 1152) -> Shapes:
    """The same checkpoint with another temporal encoder, one of ``FORMS``."""
    kept = {name: shape for name, shape in shapes.items() if not name.startswith(TEMPORAL)}
    if form == "gttm-32-latents":
        kept["vision_tokenizer.latents"] = (32, width)
    others = kept | {TEMPORAL + name: shape for name, shape in FORMS[form](width).items()}
    return dict(sorted(others.items(), key=_module))


def token_learner(name: str, num_tokens: int, width: int) -> Shapes:
    vectors = {f"{name}.{part}.{kind}": (width,) for part in ("norm", "mlp.0") for kind in ("weight", "bias")}
    return {
        **vectors,
        f"{name}.mlp.1.weight": (2 * num_tokens, width),
        f"{name}.mlp.3.weight": (num_tokens, 2 * num_tokens),
    }


def process_layers(name: str, num_layers: int, width: int) -> Shapes:
    shapes: Shapes = {}
    for layer in (f"{name}.{i}" for i in range(num_layers)):
        shapes |= {f"{layer}.0.norm.weight": (width,), f"{layer}.0.norm.bias": (width,)}
        shapes |= {f"{layer}.0.to_{kind}.weight": (width, width) for kind in "qkv"}
        shapes |= {f"{layer}.1.0.weight": (width,), f"{layer}.1.0.bias": (width,)}
        shapes |= {f"{layer}.1.1.weight": (4 * width, width), f"{layer}.1.3.weight": (width, 4 * width)}
    return shapes


def gttm(width: int, num_groups: int = 128) -> Shapes:
    return {
        "initial_memory": (num_groups, 4, width),
        "pos_emb.inv_freq": (width // 2,),
        **process_layers("ttm_unit.process_layers", 4, width),
        **token_learner("ttm_unit.read_layer", num_groups, width),
        **token_learner("ttm_unit.write_layer", 4, width),
    }


def ttm(width: int, output: int) -> Shapes:
    return {
        "initial_memory": (128, width),
        **process_layers("ttm_unit.process_layers", 2, width),
        **token_learner("ttm_unit.read_layer", 64, width),
        **token_learner("ttm_unit.write_layer", 128, width),
        **token_learner("ttm_unit.output_layer", output, width),
    }


def mambalike(width: int) -> Shapes:
    shapes: Shapes = {"initial_memory": (128, 4, width), "pos_emb.inv_freq": (width // 2,)}
    for name in ("expand_mlp", "expand_mlp2"):
        shapes |= {f"{name}.0.weight": (1,), f"{name}.0.bias": (1,)}
        shapes |= {f"{name}.1.weight": (8, 1), f"{name}.3.weight": (4, 8)}
    return shapes


# Temporal encoders with the tensor names of the authors' code, and the forms that the 32-token release may have.
FORMS: dict[str, Callable[[int], Shapes]] = {
    "gttm": gttm,
    "gttm-attention": lambda width: {**gttm(width), **token_learner("some_head", 32, width)},
    "gttm-32-latents": lambda width: gttm(width, 32),
    "tokenlearner": lambda width: token_learner("final_output", 32, width),
    "tokenlearner-128": lambda width: token_learner("final_output", 128, width),
    "per-frame": lambda width: token_learner("final_output", 4, width),
    "transformer": lambda width: process_layers("process_layers", 4, width),
    "ttm": lambda width: ttm(width, 16),
    "ttm-memory": lambda width: {"pos_emb.inv_freq": (width // 2,), **ttm(width, 32)},
    "mambalike": mambalike,
    "weightless": lambda width: {},
}


def write_checkpoint(
    folder: Path,
    shapes: Mapping[str, Shape],
    *,
    make: Make | None = None,
    dtype: str = "F32",
    shard_bytes: int = SHARD_BYTES,
    config: Mapping[str, object] = CONFIG,
    preprocessor: Mapping[str, object] = PREPROCESSOR,
) -> Path:
    """Writes shards, index and configs, without tokenizer files.

    Args:
        folder: created if missing.
        shapes: of the tensors, without ``vlm.``.
        make: makes the tensor of a name and shape, one at a time; None: sparse files that read as zeros.
        dtype: of all tensors.
        shard_bytes: the most bytes of a shard.
        config: the content of config.json.
        preprocessor: the content of preprocessor_config.json.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(shapes, DTYPES[dtype].itemsize, shard_bytes)
    names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, {tensor: shapes[tensor] for tensor in shard}, make, dtype)
    total = sum(prod(shape) for shape in shapes.values()) * DTYPES[dtype].itemsize
    places = {PREFIX + tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    for file, values in (
        (INDEX, index),
        ("config.json", config),
        ("preprocessor_config.json", preprocessor),
        ("generation_config.json", GENERATION),
    ):
        (folder / file).write_text(json.dumps(values, indent=2) + "\n", "utf-8")
    return folder


def _shards(shapes: Mapping[str, Shape], item_bytes: int, limit: int) -> list[list[str]]:
    """Names by shard: shards are filled in order until the next tensor would not fit."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        num_bytes = prod(shape) * item_bytes
        if shards[-1] and size + num_bytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += num_bytes
    return shards


def _write_shard(path: Path, shapes: Mapping[str, Shape], make: Make | None, dtype: str) -> None:
    sizes = [prod(shape) * DTYPES[dtype].itemsize for shape in shapes.values()]
    offsets = [sum(sizes[:i]) for i in range(len(sizes) + 1)]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    for (name, shape), (start, end) in zip(shapes.items(), pairwise(offsets), strict=True):
        header[PREFIX + name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if make is None:
            file.truncate(8 + len(text) + offsets[-1])
            return
        for name, shape in shapes.items():
            data = make(name, shape).to(DTYPES[dtype]).contiguous().reshape(-1)
            file.write(data.view(torch.uint8).numpy().data)
