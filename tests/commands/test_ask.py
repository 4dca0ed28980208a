"""``blip3v ask``."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from film_server import serving
from PIL import Image
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v import cli
from blip3v.commands.ask import command, default_bundle
from blip3v.errors import ArtifactMissingError, RequestError, UsageError
from blip3v.runtime import GenerationOptions, VideoLM, opening

CLIP = str(Path(__file__).parents[2] / "examples" / "turn.mp4")
QUESTION = "Which way does the red circle turn?"


@pytest.fixture(scope="module")
def bundle_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    return write_bundle(tmp_path_factory.mktemp("bundles") / "blip3v-toy", config, Weights.random(config.text))


@pytest.fixture(scope="module")
def lm(bundle_path: Path) -> Iterator[VideoLM]:
    with VideoLM.open(bundle_path, threads=1) as opened:
        yield opened


def _ask(*arguments: str) -> Result:
    return CliRunner().invoke(command, list(arguments), catch_exceptions=False)


def test_only_the_answer_is_on_stdout(bundle_path: Path, lm: VideoLM) -> None:
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--threads", "1")
    expected = lm.ask(CLIP, QUESTION)
    assert result.stdout == expected.text + "\n"
    for index, time_s in expected.frames:
        assert f"{index} ({time_s:.2f} s)" in result.stderr
    assert "8 of them video" in result.stderr
    assert "ms per token" in result.stderr


def test_the_cost_of_opening_a_large_model_is_printed_first(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "opening" not in _ask(CLIP, QUESTION, "-m", str(bundle_path)).stderr
    monkeypatch.setattr(opening, "_LARGE_BYTES", 2**20)
    lines = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--max-context", "128").stderr.splitlines()
    assert re.fullmatch(rf"opening {bundle_path}: about \d\S* MiB of memory of .* that are free, \d\S* m?s", lines[0])
    assert re.fullmatch(r"memory: .* at the peak", lines[-1])


def test_streaming_prints_the_same(bundle_path: Path) -> None:
    plain = _ask(CLIP, QUESTION, "-m", str(bundle_path))
    assert _ask(CLIP, QUESTION, "-m", str(bundle_path), "--stream").stdout == plain.stdout


def test_json_is_one_object_with_everything(bundle_path: Path, lm: VideoLM) -> None:
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), "--json", "--logprobs", "2", "--max-new-tokens", "4")
    found = json.loads(result.stdout)
    expected = lm.ask(CLIP, QUESTION, options=GenerationOptions(max_new_tokens=4, logprobs=2))
    assert found["text"] == expected.text
    assert found["token_ids"] == list(expected.token_ids)
    assert found["frames"] == [{"index": index, "time_s": time_s} for index, time_s in expected.frames]
    assert found["usage"]["num_video_tokens"] == 8
    assert found["model"] == str(bundle_path)
    assert {"file_decode_s", "encode_s", "prefill_s", "per_token_s"} <= set(found["timings"])
    assert len(found["logprobs"]) == found["usage"]["num_new_tokens"]


def test_options_reach_the_model(bundle_path: Path, lm: VideoLM) -> None:
    flags = ["--temperature", "1.5", "--top-k", "40", "--top-p", "0.95", "--seed", "3", "--max-new-tokens", "6"]
    result = _ask(CLIP, QUESTION, "-m", str(bundle_path), *flags, "--repetition-penalty", "1.1", "--start", "1")
    options = GenerationOptions(temperature=1.5, top_k=40, top_p=0.95, seed=3, max_new_tokens=6, repetition_penalty=1.1)
    assert result.stdout == lm.ask(CLIP, QUESTION, options=options, start=1.0).text + "\n"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--stream", "--json"], UsageError),
        (["--logprobs", "1"], UsageError),
        (["--top-p", "0.5"], RequestError),
        (["--threads", "0"], UsageError),
        (["-m", "nowhere"], ArtifactMissingError),
    ],
    ids=["stream-json", "logprobs", "top-p", "threads", "no-bundle"],
)
def test_refusals(bundle_path: Path, flags: list[str], error: type[Exception]) -> None:
    model = [] if "-m" in flags else ["-m", str(bundle_path)]
    with pytest.raises(error):
        _ask(CLIP, QUESTION, *model, *flags)


def test_without_a_model_the_only_bundle_in_the_folder_is_used(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "blip3v-empty").mkdir()
    with pytest.raises(UsageError, match="blip3v export --encoder tokenlearner --precision fp16"):
        _ask(CLIP, QUESTION)
    shutil.copytree(bundle_path, tmp_path / "blip3v-one")
    assert default_bundle(tmp_path) == Path("blip3v-one")
    assert _ask(CLIP, QUESTION).stdout == _ask(CLIP, QUESTION, "-m", str(bundle_path)).stdout
    shutil.copytree(bundle_path, tmp_path / "blip3v-two")
    with pytest.raises(UsageError, match="blip3v-one, blip3v-two"):
        _ask(CLIP, QUESTION)


def test_help_has_examples_and_defaults() -> None:
    text = _ask("--help").stdout
    assert text.count("blip3v ask ") == 3
    assert "[default: 0.0]" in text


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of four images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        Image.new("RGB", (20, 20), (60 * number, 0, 0)).save(folder / f"{number}.png")
    return folder


def test_frames_without_times_and_how_many_differ(bundle_path: Path, pictures: Path) -> None:
    """A folder's frames were told to be a second apart; that the model saw one of them only was not told at all."""
    result = _ask(str(pictures), QUESTION, "-m", str(bundle_path))
    assert "frames: 2, 2, 2, 2\n" in result.stderr
    assert "different frames: 1 of 4, because the clip is short; a longer one shows the model more" in result.stderr
    found = json.loads(_ask(str(pictures), QUESTION, "-m", str(bundle_path), "--json").stdout)
    assert found["frames"] == [{"index": 2, "time_s": None}] * 4
    assert found["num_different_frames"] == 1
    assert "different frames" not in _ask(CLIP, QUESTION, "-m", str(bundle_path)).stderr


def test_a_frame_rate_gives_a_folder_times(bundle_path: Path, pictures: Path) -> None:
    result = _ask(str(pictures), QUESTION, "-m", str(bundle_path), "--fps", "2", "--start", "0.5")
    assert "frames: 1 (0.50 s), 1 (0.50 s), 2 (1.00 s), 3 (1.50 s)\n" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "1"], "start is 1 s, but pictures have no times; give their frame rate, for example --fps 25,"),
        (["--end", "1"], "for example --fps 25, or leave --end out"),
    ],
    ids=["start", "end"],
)
def test_a_part_of_a_folder_needs_a_frame_rate(
    bundle_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert cli._run(["ask", str(pictures), QUESTION, "-m", str(bundle_path), *arguments]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://example.org/film.mp4", "https:/example.org/film.mp4"])
def test_a_url_needs_permission(bundle_path: Path, capsys: pytest.CaptureFixture[str], url: str) -> None:
    """The URL was shown with one slash, as a file that is not there."""
    assert cli._run(["ask", url, QUESTION, "-m", str(bundle_path)]) == 7
    said = "https://example.org/film.mp4 is a URL, which the video limits do not allow to fetch; pass --allow-url, or "
    assert said in capsys.readouterr().err


def test_a_url_that_is_allowed_is_downloaded(bundle_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On this machine only with a second permission. The progress is talk, and the log is as quiet as before."""
    with serving(Path(CLIP).read_bytes()) as server:
        url = server.url("film.mp4")
        assert cli._run(["ask", url, QUESTION, "-m", str(bundle_path), "--allow-url"]) == 7
        assert "if it is to be reached, pass --allow-private-url" in capsys.readouterr().err
        assert cli._run(["ask", url, QUESTION, "-m", str(bundle_path), "--allow-url", "--allow-private-url"]) == 0
    printed = capsys.readouterr()
    assert f"downloading {url}, " in printed.err
    assert "\ndownloaded " in printed.err
    assert cli._run(["ask", CLIP, QUESTION, "-m", str(bundle_path)]) == 0
    assert capsys.readouterr().out == printed.out
    assert logging.getLogger("blip3v.video.download").handlers == []
