"""The temporal encoder's settings: counts, forms, what has no effect, and config files of before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from blip3v.config import ENCODERS, ModelConfig, preset
from blip3v.errors import ConfigError

RELEASED = preset("xgen-mm-vid")
# Counts for 8 frames of 128 tokens, the usual one first.
COUNTS = {
    "tokenlearner": (32, 16, 64, 128, 256),
    "gttm": (128, 16, 32, 64, 256),
    "ttm": (128, 16, 32, 64, 256),
    "transformer": (128, 16, 32, 64, 256),
    "perceiver": (32, 16, 64, 128),
    "mean": (128,),
    "max": (128,),
    "per-frame": (32, 16, 64, 128, 256),
    "space-time-pool": (32, 16, 64, 128),
    "none": (1024,),
    "single-frame": (128,),
    "mambalike": (128, 16, 32, 64, 256),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_the_counts_of_an_encoder(encoder: str) -> None:
    assert RELEASED.with_encoder(encoder).num_video_tokens == COUNTS[encoder][0]
    for count in COUNTS[encoder]:
        assert RELEASED.with_encoder(encoder, num_video_tokens=count).num_video_tokens == count


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("count", [0, 31, 2048])
def test_a_count_that_an_encoder_cannot_give_is_an_error_that_lists_those_it_can(encoder: str, count: int) -> None:
    listed = ", ".join(map(str, sorted(COUNTS[encoder])))
    with pytest.raises(ConfigError, match=f"{encoder} cannot give {count} tokens for 8 frames; allowed: {listed}$"):
        RELEASED.with_encoder(encoder, num_video_tokens=count)


@pytest.mark.parametrize(("encoder", "of_8", "of_16"), [("none", 1024, 2048), ("per-frame", 32, 64), ("ttm", 128, 256)])
def test_a_count_by_frame_follows_the_frames(encoder: str, of_8: int, of_16: int) -> None:
    config = RELEASED.with_encoder(encoder)
    assert (config.num_video_tokens, config.with_frames(16).num_video_tokens) == (of_8, of_16)
    assert RELEASED.with_encoder(encoder, num_frames=16).num_video_tokens == of_16


@pytest.mark.parametrize("encoder", sorted(set(ENCODERS) - {"none", "per-frame", "ttm"}))
def test_other_counts_do_not_depend_on_the_frames(encoder: str) -> None:
    config = RELEASED.with_encoder(encoder)
    assert config.with_frames(3).temporal == config.temporal
    ttm = RELEASED.with_encoder("ttm", num_video_tokens=32)
    assert ttm.with_frames(3).num_video_tokens == 32


@pytest.mark.parametrize("encoder", ["gttm", "mambalike"])
def test_attention_is_chosen_where_the_released_mean_does_not_give_the_count(encoder: str) -> None:
    assert RELEASED.with_encoder(encoder).temporal.pooling == "mean"
    assert RELEASED.with_encoder(encoder, num_video_tokens=128).temporal.pooling == "mean"
    assert RELEASED.with_encoder(encoder, num_video_tokens=32).temporal.pooling == "attention"
    asked = RELEASED.with_encoder(encoder, num_video_tokens=128, pooling="attention")
    assert asked.temporal.pooling == "attention"
    assert asked.with_encoder(encoder, num_video_tokens=128) == asked  # a form that fits is kept
    assert asked.with_encoder("mean").temporal.pooling == "mean"
    with pytest.raises(ConfigError, match=r"cannot give 32 tokens for 8 frames; allowed: 128$"):
        RELEASED.with_encoder(encoder, num_video_tokens=32, pooling="mean")


def test_the_memory_of_ttm_is_the_output_where_its_steps_do_not_give_the_count() -> None:
    assert not RELEASED.with_encoder("ttm").temporal.memory_output
    by_memory = RELEASED.with_encoder("ttm", num_video_tokens=32).temporal
    assert (by_memory.memory_output, by_memory.memory_tokens) == (True, 32)
    by_steps = RELEASED.with_encoder("ttm", num_video_tokens=32, step_tokens=4).temporal
    assert (by_steps.memory_output, by_steps.memory_tokens) == (False, 128)
    assert RELEASED.with_encoder("ttm", memory_output=True).num_video_tokens == 128
    with pytest.raises(ConfigError, match="make the two equal"):
        RELEASED.with_encoder("ttm", num_video_tokens=32, memory_output=True, memory_tokens=64)


def test_depth_goes_from_encoder_to_encoder_in_the_released_proportion() -> None:
    depths = [RELEASED.with_encoder(name).temporal.num_layers for name in ("gttm", "transformer", "ttm")]
    assert depths == [4, 4, 2]
    tiny = preset("tiny")
    assert tiny.with_encoder("ttm").temporal.num_layers == 1
    assert tiny.with_encoder("ttm").with_encoder("tokenlearner") == tiny
    assert RELEASED.with_encoder("ttm", num_layers=4).temporal.num_layers == 4


@pytest.mark.parametrize(
    ("encoder", "options", "says"),
    [
        ("tokenlearner", {"num_slots": 2}, "num_slots has no effect on tokenlearner; it reads time_stamps"),
        ("max", {"pooling": "sum"}, "max cannot pool by 'sum'; allowed: mean|pooling has no effect on max"),
        ("gttm", {"time_stamps": True}, "time_stamps has no effect on gttm"),
        ("ttm", {"memory_output": True, "step_tokens": 8}, "step_tokens has no effect on ttm with memory_output"),
        ("gttm", {"pooling": "sum"}, "gttm cannot pool by 'sum'; allowed: mean, attention"),
        ("gttm", {"slots": 2}, "unknown key 'slots'; did you mean 'num_slots'"),
        ("gttm", {"num_slots": "4"}, "num_slots is '4'; int is expected"),
        ("gttm", {"num_slots": 0}, "num_slots is 0; at least 1"),
        ("gtm", {}, "encoder 'gtm' is unknown; allowed: tokenlearner, gttm"),
    ],
)
def test_what_cannot_be_or_has_no_effect_is_refused(encoder: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        RELEASED.with_encoder(encoder, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_config_file_gives_the_config_back(encoder: str, tmp_path: Path) -> None:
    config = RELEASED.with_encoder(encoder, num_video_tokens=COUNTS[encoder][-1])
    config.save(tmp_path / "config.json")
    assert ModelConfig.load(tmp_path / "config.json") == config


def test_a_config_file_of_before_the_settings_of_ttm_loads(tmp_path: Path) -> None:
    values = RELEASED.to_dict()
    for name in ("pooling", "process_tokens", "memory_tokens", "step_tokens", "memory_output"):
        del values["temporal"][name]
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert ModelConfig.load(tmp_path / "config.json") == RELEASED


def test_a_config_file_whose_settings_do_not_fit_is_refused(tmp_path: Path) -> None:
    values = RELEASED.to_dict()
    values["temporal"]["memory_output"] = True
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match="memory_output has no effect on gttm"):
        ModelConfig.load(tmp_path / "config.json")
