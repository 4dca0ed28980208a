"""Real video files, written once a session."""

from pathlib import Path

import av
import numpy as np
import pytest
from film_files import Film, write_film

from blip3v.video import decoder_process


@pytest.fixture(scope="session")
def film(tmp_path_factory: pytest.TempPathFactory) -> Film:
    """``film(name, num_frames, **options)`` returns the path of a film, which is written once."""
    folder = tmp_path_factory.mktemp("films")

    def make(name: str, num_frames: int, **options: object) -> Path:
        path = folder / name
        return path if path.exists() else write_film(path, num_frames, **options)

    return make


@pytest.fixture(scope="session")
def plain(film: Film) -> Path:
    """60 frames at 25 fps, H.264 with B frames, a keyframe every 12 frames, index at the front."""
    return film("plain.mp4", 60, container_options={"movflags": "faststart"})


@pytest.fixture(scope="session")
def audio_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a second of silence in an mp4."""
    path = tmp_path_factory.mktemp("audio") / "audio.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without what pytest changes between a fixture and its test: a process of another environment is not used."""
    environment = decoder_process._environment

    def without_the_phase() -> dict[str, str]:
        return {name: value for name, value in environment().items() if name != "PYTEST_CURRENT_TEST"}

    monkeypatch.setattr(decoder_process, "_environment", without_the_phase)
