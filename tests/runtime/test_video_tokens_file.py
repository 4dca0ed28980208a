from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v.errors import ArtifactError, ArtifactMissingError, RequestError
from blip3v.runtime import VideoLM, VideoTokens


def test_saved_tokens_give_the_same_answer(lm: VideoLM, video: VideoTokens, tmp_path: Path) -> None:
    video.save(tmp_path / "clip.safetensors")
    loaded = VideoTokens.load(str(tmp_path / "clip.safetensors"))
    assert np.array_equal(loaded.tokens, video.tokens)
    assert loaded.tokens.dtype == video.tokens.dtype
    assert (loaded.frames, loaded.encoder, len(loaded)) == (video.frames, video.encoder, 8)
    assert lm.ask(loaded, "Why?").token_ids == lm.ask(video, "Why?").token_ids
    assert [path.name for path in tmp_path.iterdir()] == ["clip.safetensors"]


def test_tokens_of_another_encoder_are_refused(video: VideoTokens, tmp_path: Path) -> None:
    config = toy_config()
    path = write_bundle(tmp_path / "other", config, Weights.random(config.text), encoder_seed=9)
    with VideoLM.open(path, threads=1) as other, pytest.raises(RequestError, match="encode the video again"):
        other.ask(video, "Why?")


def test_tokens_of_the_same_encoder_in_another_bundle_are_taken(video: VideoTokens, tmp_path: Path) -> None:
    config = toy_config()
    path = write_bundle(tmp_path / "other", config, Weights.random(config.text, seed=4), max_new_tokens=3)
    with VideoLM.open(path, threads=1) as other:
        assert other.ask(video, "Why?").usage.num_video_tokens == 8


@pytest.mark.parametrize("shape", [(8, 63), (0, 64), (8, 64, 1)], ids=str)
def test_tokens_of_another_shape_are_refused(lm: VideoLM, video: VideoTokens, shape: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="shape"):
        lm.ask(VideoTokens(np.zeros(shape, np.float32), video.frames, video.encoder), "Why?")


def _file(path: Path, tokens: np.ndarray, **metadata: str) -> None:
    given = {"format": "blip3v.video_tokens.1", "encoder": "x", "frames": "[[0, 0.0]]", **metadata}
    safetensors.numpy.save_file({"video_tokens": tokens}, path, given)


@pytest.mark.parametrize(
    "metadata",
    [{"format": "other"}, {"frames": "[1]"}, {"frames": "{"}, {"frames": json.dumps([["a", 1]])}, {"frames": "null"}],
    ids=["format", "frames-shape", "frames-json", "frames-text", "frames-null"],
)
def test_a_file_with_other_metadata_is_refused(tmp_path: Path, metadata: dict[str, str]) -> None:
    _file(tmp_path / "x", np.zeros((2, 4), np.float32), **metadata)
    with pytest.raises(ArtifactError, match="video tokens"):
        VideoTokens.load(tmp_path / "x")


@pytest.mark.parametrize(
    "tokens",
    [
        np.zeros((2, 4), np.int64),
        np.zeros(4, np.float32),
        np.zeros((0, 4), np.float32),
        np.full((2, 4), np.nan, np.float32),
    ],
    ids=["integers", "one-axis", "none", "nan"],
)
def test_a_file_with_other_values_is_refused(tmp_path: Path, tokens: np.ndarray) -> None:
    _file(tmp_path / "x", tokens)
    with pytest.raises(ArtifactError):
        VideoTokens.load(tmp_path / "x")


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello, I am no tensor file")
    safetensors.numpy.save_file({"a": np.zeros(1), "b": np.zeros(1)}, tmp_path / "two")
    for name in ("text", "two"):
        with pytest.raises(ArtifactError):
            VideoTokens.load(tmp_path / name)
    with pytest.raises(ArtifactMissingError):
        VideoTokens.load(tmp_path / "none")


def test_a_folder_that_cannot_be_written_is_an_error(video: VideoTokens, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot be written"):
        video.save(tmp_path / "no" / "folder" / "x")
