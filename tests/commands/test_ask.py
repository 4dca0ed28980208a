"""``blip3v ask``."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

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
