"""What is exported: from options to source, random weights, a new encoder on a trained base, and the estimate."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from export_models import small_config, write_folder

from blip3v.bundle import Precision
from blip3v.config import preset
from blip3v.errors import ConfigError
from blip3v.export.estimate import estimate
from blip3v.export.source import folder_source, new_encoder_source, resolve_source
from blip3v.model.weights import random_model
from blip3v.text import Tokenizer


def test_random_weights_differ_in_every_layer_and_follow_from_the_seed() -> None:
    config = small_config()
    first, again, other = (random_model(config, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["vision_tokenizer.latents"], other["vision_tokenizer.latents"])
    for prefix in ("lang_model.model.layers", "vision_encoder.encoder.layers", "vision_tokenizer.layers"):
        names = [name for name in first if name.startswith(f"{prefix}.0.")]
        assert names
        for name in names:
            assert not torch.equal(first[name], first[name.replace(f"{prefix}.0.", f"{prefix}.1.")]), name


def test_a_random_source_has_a_tokenizer_of_the_models_size(tmp_path: Path) -> None:
    source = resolve_source(init="random", encoder="tokenlearner", num_video_tokens=16)
    path = tmp_path / "tokenizer.json"
    path.write_text(source.tokenizer_json, "utf-8")
    tokenizer = Tokenizer.load(path)
    assert source.config.num_video_tokens == 16
    assert tokenizer.num_tokens == source.config.text.num_logits
    assert tokenizer.image_id == source.config.text.num_base_tokens
    assert source.provenance.random_init
    assert not source.provenance.trained
    assert source.folder_name == "blip3v-tiny-tokenlearner-16tok-random"


def test_an_unknown_token_count_lists_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="16, 32, 64, 128, 256"):
        resolve_source(init="random", encoder="tokenlearner", num_video_tokens=17)


def test_frames_change_only_a_count_per_frame_and_no_weight(tmp_path: Path) -> None:
    counts = {"none": 5 * 128, "per-frame": 5 * 4, "ttm": 5 * 16, "tokenlearner": 32, "gttm": 128}
    for encoder, expected in counts.items():
        path = write_folder(tmp_path / encoder, small_config(encoder))
        source = folder_source(path, num_frames=5)
        assert (source.config.num_frames, source.config.num_video_tokens) == (5, expected)
        shapes = {name: x.shape for name, x in random_model(source.config).state_dict().items()}
        assert {name: x.shape for name, x in source.weights.items()} == shapes


def test_a_new_encoder_keeps_the_base(folder: Path) -> None:
    source = new_encoder_source(folder, "tokenlearner", num_video_tokens=16)
    assert not source.provenance.trained
    assert not source.provenance.random_init
    base, new = random_model(small_config()).state_dict(), source.weights
    for name, tensor in new.items():
        if ".temporal_encoder." not in name:
            assert torch.equal(tensor, base[name]), name
    assert new["vision_tokenizer.temporal_encoder.final_output.mlp.3.weight"].shape == (16, 32)


def test_the_estimate_counts_the_released_models_weights() -> None:
    """All weights of the released 128-token checkpoint but the pooling head and the read layer, which are never run."""
    released, pooling_head, read_layer, frequencies = 4_418_604_771, 15_238_352, 332_288, 576
    unused_rows = (32064 - 32012) * 3072
    counts = estimate(preset("xgen-mm-vid"), Precision.parse("fp16")).num_weights
    assert sum(counts.values()) + unused_rows == released - pooling_head - read_layer - frequencies
