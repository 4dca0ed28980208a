"""``blip3v data rephrase``, with a local server that stands in for the endpoint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from endpoint_server import StandIn, refusal, serving
from published import lay_out

from blip3v import cli
from blip3v.data.authors import read_samples
from blip3v.data.authors_list import write_samples
from blip3v.data.records import ClipSample, Turn
from blip3v.data.rephrase import RephrasePrompt, short_turns
from blip3v.errors import ConfigError

SENTENCE = "A circle turns left."


def sentence_of(messages: list[dict[str, str]]) -> str:
    assert messages[0]["role"] == "system"
    assert messages[1]["content"] == "Question: what turns left?\nAnswer: circle\nSentence:"
    return f" {SENTENCE}\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One question about one clip twice, as the data set has some."""
    folder = lay_out("msrvtt-qa", tmp_path_factory.mktemp("rephrase") / "msrvtt")
    (listed,) = folder.rglob("test_qa.json")
    listed.write_text(listed.read_text("utf-8").replace("what moves first?", "what turns left?"), "utf-8")
    return folder


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[StandIn]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(StandIn(sentence_of, key="secret"), monkeypatch) as stand_in:
        yield stand_in


def arguments(root: Path, endpoint: StandIn, *further: str) -> list[str]:
    where = ["--endpoint", endpoint.url, "--model", "mine", "--key", "MY_KEY", "-o", "out.json"]
    return ["data", "rephrase", f"msrvtt-qa:test={root}", *where, *further]


def test_short_answers_become_sentences_that_train_reads(
    root: Path, endpoint: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(arguments(root, endpoint, "--price", "0.5,1.5")) == 0
    captured = capsys.readouterr()
    assert captured.out == "out.json: 2 records, 2 answers rephrased, cost 8e-06\n"
    told = captured.err.splitlines()
    assert told[0].startswith(f"msrvtt-qa (test) in {root}: 2 records")
    assert told[1].startswith("1 request to send, 0 in the cache: about ")
    assert ", about " in told[1].partition("answers")[2]
    assert told[-1] == "next: blip3v train --recipe RECIPE --data out.json"
    assert len(endpoint.requests) == 1  # the same question and answer twice
    samples = read_samples("out.json")
    assert [sample.turns for sample in samples] == [(Turn("what turns left?", SENTENCE),)] * 2
    assert [sample.video for sample in samples] == [root / "video" / "video7010.mp4"] * 2


def test_a_second_run_is_answered_from_the_cache_and_may_keep_the_short_answers(
    root: Path, endpoint: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(arguments(root, endpoint)) == 0
    assert cli._run(arguments(root, endpoint)) == 2
    assert "out.json exists; choose another file or add --force" in capsys.readouterr().err
    assert cli._run(arguments(root, endpoint, "--force", "--keep-short", "--json")) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["usage"] | {"num_requests": 0, "num_cached": 1} == json.loads(captured.out)["usage"]
    assert "0 requests to send, 1 in the cache" in captured.err
    assert len(endpoint.requests) == 1
    answers = [sample.turns[0].answer for sample in read_samples("out.json")]
    assert answers == ["circle", SENTENCE] * 2


def test_a_dry_run_sends_nothing(root: Path, endpoint: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli._run(arguments(root, endpoint, "--dry-run", "--json", "--price", "1,2")) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["num_requests"], values["num_cached"], endpoint.requests) == (1, 0, [])
    assert values["cost"] == pytest.approx((values["prompt_tokens"] + 2 * values["completion_tokens"]) / 1e6)
    assert list(Path().iterdir()) == []


def test_an_answer_without_a_sentence_stays_short_and_is_named(
    root: Path, endpoint: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    endpoint.model = lambda messages: "  "
    assert cli._run(arguments(root, endpoint)) == 0
    captured = capsys.readouterr()
    assert captured.out == "out.json: 2 records, 0 answers rephrased\n"
    assert "1 answer stayed short, since the model gave no sentence: 'what turns left?'" in captured.err
    assert {sample.turns[0].answer for sample in read_samples("out.json")} == {"circle"}


def test_what_an_endpoint_refuses_ends_the_run(
    root: Path, endpoint: StandIn, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "other")
    assert cli._run(arguments(root, endpoint)) != 0
    assert "does not accept the key in MY_KEY" in capsys.readouterr().err
    monkeypatch.setenv("MY_KEY", "secret")
    endpoint.model = lambda messages: refusal(400, "no")
    assert cli._run(arguments(root, endpoint)) != 0
    assert not Path("out.json").exists()


@pytest.mark.parametrize(
    ("further", "message"),
    [
        (["--max-cost", "1"], "--max-cost needs --price"),
        (["--price", "1"], "is not two numbers with a comma"),
        (["--price", "1,-1"], "has a price that is not 0 or more"),
        (["--prompt", "none"], "none has no prompt"),
    ],
)
def test_options_that_do_not_fit(
    further: list[str], message: str, root: Path, endpoint: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli._run(arguments(root, endpoint, *further)) == 2
    assert message in capsys.readouterr().err
    assert endpoint.requests == []


def test_long_answers_are_left_as_they_are() -> None:
    turns = (Turn("a?", "one two three"), Turn("b?", "one"), Turn("b?", "one"))
    assert short_turns([ClipSample(Path("a.mp4"), turns)], 2) == [Turn("b?", "one")]


def test_a_prompt_of_ones_own_needs_its_places(tmp_path: Path) -> None:
    (tmp_path / "rephrase_system.txt").write_text("Be brief.")
    (tmp_path / "rephrase_user.txt").write_text("{question}")
    with pytest.raises(ConfigError, match=r"contains \{answer\} 0 times; 1 is expected"):
        RephrasePrompt.load(tmp_path)
    (tmp_path / "rephrase_user.txt").write_text("{answer} <- {question}")
    request = RephrasePrompt.load(tmp_path).request(Turn("{answer}?", "{question}"))
    assert request.messages[1].content == "{question} <- {answer}?"


def test_a_written_list_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    sample = ClipSample(tmp_path / "a.mp4", (Turn("a?", "b"), Turn("c?", "d")), 1.0, 2.5, key="7")
    write_samples([sample], tmp_path / "list.json")
    assert json.loads((tmp_path / "list.json").read_text("utf-8"))[0]["path"] == "a.mp4"
    (read,) = read_samples(tmp_path / "list.json")
    assert (read.video, read.turns, read.start_s, read.end_s) == (sample.video, sample.turns, 1.0, 2.5)
