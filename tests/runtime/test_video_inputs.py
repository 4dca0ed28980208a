"""What ``VideoLM`` takes as a video, the times of its frames, and how many of them differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip3v.errors import RequestError, RequestTimeoutError, UnsupportedVideoError, UsageError
from blip3v.runtime import GenerationOptions, VideoLimits, VideoLM, VideoTokens

ONE_TOKEN = GenerationOptions(max_new_tokens=1)


def test_pictures_have_times_only_with_a_frame_rate(lm: VideoLM, film: np.ndarray, tmp_path: Path) -> None:
    """They were told to be a second apart, which nobody had said."""
    video = lm.encode(film)
    assert video.frames == ((2, None), (3, None), (5, None), (7, None))
    video.save(tmp_path / "clip.safetensors")
    assert VideoTokens.load(tmp_path / "clip.safetensors").frames == video.frames
    assert lm.encode(film, fps=2.0).frames == ((2, 1.0), (3, 1.5), (5, 2.5), (7, 3.5))
    with pytest.raises(UsageError, match=r"start is 1 s, but pictures have no times; .*`fps=25`"):
        lm.encode(film, start=1.0)


def test_a_frame_rate_reaches_every_call(lm: VideoLM, film: np.ndarray, video: VideoTokens) -> None:
    expected = ((5, 2.5), (5, 2.5), (5, 2.5), (6, 3.0))
    assert lm.encode(film, fps=2.0, start=1.5, end=4.0).frames == expected
    assert lm.ask(film, "Why?", fps=2.0, start=1.5, end=4.0, options=ONE_TOKEN).frames == expected
    with lm.stream(film, "Why?", fps=2.0, start=1.5, end=4.0, options=ONE_TOKEN) as stream:
        assert stream.read().frames == expected
    with lm.chat(film, fps=2.0, start=1.5, end=4.0) as chat:
        assert chat.ask("Why?", options=ONE_TOKEN).frames == expected
    with pytest.raises(RequestError, match="no effect on ready video tokens"):
        lm.ask(video, "Why?", fps=2.0)
    with pytest.raises(UsageError, match="its own timestamps"):
        lm.ask(Path(__file__).parents[2] / "examples" / "turn.mp4", "Why?", fps=2.0)


def test_a_generator_in_a_batch_is_read_once(lm: VideoLM, film: np.ndarray) -> None:
    frames = iter(film)
    first, second = lm.ask_batch([(frames, "Why?"), (frames, "How?")], options=ONE_TOKEN)
    assert first.frames == second.frames == lm.encode(film).frames


@pytest.mark.parametrize(
    ("num_pictures", "indices", "different"),
    [(1, [0, 0, 0, 0], 1), (4, [2, 2, 2, 2], 1), (5, [2, 2, 2, 3], 2), (7, [2, 3, 4, 5], 4)],
)
def test_an_answer_says_how_many_frames_differ(
    lm: VideoLM, film: np.ndarray, num_pictures: int, indices: list[int], different: int
) -> None:
    """A clip of as many frames as the model takes shows it one frame, by the released rule, and nothing said so."""
    video = lm.encode([Image.fromarray(frame) for frame in film[:num_pictures]])
    assert [index for index, _ in video.frames] == indices
    assert video.num_different_frames == different
    assert lm.ask(video, "Why?", options=ONE_TOKEN).num_different_frames == different


def test_the_time_limit_of_a_request_ends_an_endless_generator(lm: VideoLM) -> None:
    def frames() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros((8, 8, 3), np.uint8)

    with pytest.raises(RequestTimeoutError):
        lm.ask(frames(), "Why?", options=GenerationOptions(timeout_s=0.2))


def test_urls_are_off(lm: VideoLM, bundle_path: Path) -> None:
    with pytest.raises(UnsupportedVideoError, match="`allow_url=True`"):
        lm.encode("http://127.0.0.1:9/film.mp4")
    limits = VideoLimits(allow_url=True)
    with (
        VideoLM.open(bundle_path, threads=1, limits=limits) as allowed,
        pytest.raises(UnsupportedVideoError, match="`allow_private_url=True`"),
    ):
        allowed.encode("http://127.0.0.1:9/film.mp4")
