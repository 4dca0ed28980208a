"""``blip3v eval --benchmark``: from a published fixture to predictions, verdicts and a line of the paper's table."""

from __future__ import annotations

import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result
from endpoint_server import StandIn, serving
from export_models import small_config, write_folder
from published import lay_out
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v.commands.eval import command
from blip3v.errors import UsageError
from blip3v.evaluation.benchmark.predictions import read_predictions

PRICE = ("--judge-price", "0.5,1.5")
QUICK = ("--backend", "onnxruntime")  # the quickest to open


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root folders of the data sets, by name."""
    folder = tmp_path_factory.mktemp("data")
    for name in ("msvd-qa", "msrvtt-qa", "nextqa", "msrvtt-caption"):
        lay_out(name, folder / name)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def evaluate(*arguments: object) -> Result:
    return CliRunner().invoke(command, [*map(str, arguments)])


def succeed(*arguments: object) -> Result:
    result = evaluate(*arguments)
    assert result.exit_code == 0, result.output or repr(result.exception)
    return result


def record_of(*arguments: object) -> dict:
    return json.loads(succeed(*arguments, "--json").stdout)


def values(record: dict) -> dict[str, float]:
    return {score["name"]: score["value"] for score in record["result"]["scores"] if not score["kind"]}


def our_cells(record: dict, number: int) -> list[list[str]]:
    (table,) = [table for table in record["tables"] if table["number"] == number]
    return [row["cells"] for row in table["rows"] if row["is_ours"]]


def generous(messages: list[dict[str, str]]) -> str:
    """A judge that finds right whatever says something."""
    return (
        "{'pred': 'no', 'score': 0}"
        if "Predicted Answer: \n" in messages[-1]["content"]
        else "{'pred': 'yes', 'score': 4}"
    )


def test_open_questions_are_answered_judged_and_put_into_the_table(
    bundle_path: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ("--benchmark", "msrvtt-qa", "--data", data / "msrvtt-qa", "-m", bundle_path, *QUICK)
    first = record_of(*arguments)
    assert our_cells(first, 1) == [["not run", "not judged", "not run", "not run"]]
    assert set(values(first)) == {"exact match", "normalised match"}
    header, predictions = read_predictions(Path(first["file"]).with_name("msrvtt-qa.predictions.jsonl"))
    assert (header.model, header.model_kind, header.precision, header.split) == ("blip3v-toy", "bundle", "fp32", "test")
    assert len(predictions) == header.num_samples == header.num_available
    assert all(one.prediction is not None and one.frames for one in predictions)
    with serving(StandIn(generous), monkeypatch) as stand_in:
        judge = ("--judge", stand_in.url, "--judge-model", "stand-in", *PRICE, "--judge-max-cost", 1)
        judged = record_of(*arguments, *judge)
        num_asked = len(stand_in.requests)
        assert num_asked == header.num_samples
        again = succeed(*arguments, *judge)
        assert len(stand_in.requests) == num_asked, "verdicts are in the cache"
    total = header.num_available + sum(header.missing.values())
    partial = "" if total == header.num_samples else f" ({header.num_samples} of {total})"
    assert our_cells(judged, 1) == [["not run", f"100.0/4.0{partial}", "not run", "not run"]]
    who = judged["result"]["judge"]
    assert (who["model"], who["answered_by"], who["num_unparsable"]) == ("stand-in", ["stand-in-0123"], 0)
    assert (who["prompt"], len(who["prompt_digest"])) == ("blip3v", 64)
    assert who["cost"] == pytest.approx(num_asked * (10 * 0.5 + 2 * 1.5) / 1e6)
    assert "has all predictions" in again.stderr
    assert f"judging {num_asked} answers with stand-in, {num_asked} in the cache" in again.stderr
    assert "Table 1: Open-ended video question answering" in again.stdout
    page = (tmp_path / "benchmark-results" / "tables.md").read_text()
    assert f"| **blip3v-toy, fp32** |  | 8 | not run | 100.0/4.0{partial} | not run | not run |" in page
    assert "| BLIP-3-Video (v2) | 4B | 128 | 77.9/4.3 | 59.7/3.6 | 56.9/3.6 | 77.1/4.3 |" in page
    assert "Our judge: stand-in-0123, prompt blip3v" in page
    kept = record_of(*arguments)
    assert our_cells(kept, 1) == our_cells(judged, 1), "without a judge the verdicts of before stay"


def test_a_choice_is_scored_by_option(bundle_path: Path, data: Path):
    arguments = (
        "--benchmark",
        "nextqa",
        "--data",
        data / "nextqa",
        "-m",
        bundle_path,
        *QUICK,
        "--choose-by",
        "likelihood",
    )
    record = record_of(*arguments)
    result = record["result"]
    assert result["header"]["decoding"]["choose_by"] == "likelihood"
    (cell,) = our_cells(record, 2)[0]
    assert cell.startswith(f"{100 * values(record)['accuracy']:.1f}")
    predictions = read_predictions(Path(record["file"]).with_name("nextqa.predictions.jsonl"))[1]
    assert all(len(one.options) == 5 for one in predictions)


def test_a_model_folder_answers_in_pytorch(data: Path, tmp_path: Path):
    folder = write_folder(tmp_path / "untrained", small_config())
    record = record_of("--benchmark", "nextqa", "--data", data / "nextqa", "-m", folder)
    header = record["result"]["header"]
    assert (header["model"], header["computed"], header["num_video_tokens"]) == ("untrained", "fp32 on PyTorch cpu", 32)
    assert "torch" in header["versions"]
    assert values(record)["accuracy"] is not None


def test_captions_are_scored_against_all_references(bundle_path: Path, data: Path):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    arguments = ("--benchmark", "msrvtt-caption", "--data", data / "msrvtt-caption", "-m", bundle_path)
    record = record_of(*arguments, "--split", "train")
    assert {"CIDEr", "BLEU-4", "ROUGE-L"} == set(values(record))
    assert our_cells(record, 6) == [["not run", "not judged", "not run"]]
    assert any("split train" in note for table in record["tables"] for note in table["notes"])


def test_captions_need_their_packages_before_the_first_is_made(
    bundle_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    result = evaluate("--benchmark", "msrvtt-caption", "--data", data / "msrvtt-caption", "-m", bundle_path)
    assert isinstance(result.exception, ModuleNotFoundError)
    assert not Path("benchmark-results").exists()


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = toy_config()
    return write_bundle(tmp_path_factory.mktemp("other") / "other-toy", config, Weights.random(config.text, seed=1))


def test_a_bundle_beside_another_is_compared_question_by_question(
    bundle_path: Path, other_bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
):
    arguments = ("--benchmark", "msrvtt-qa", "--data", data / "msrvtt-qa", "-m", other_bundle, *QUICK)
    beside = (*arguments, "--reference", bundle_path)
    text = succeed(*beside).stdout
    assert "other-toy, fp32, beside blip3v-toy, fp32, on msrvtt-qa, split test" in text
    record = record_of(*beside)
    comparison = record["comparison"]
    assert comparison["reference"] == record["reference"]["header"]
    assert comparison["model"] == record["result"]["header"]
    pair = [read_predictions(path)[1] for path in sorted(Path("benchmark-results").glob("*/*.jsonl"))]
    texts = [[one.prediction for one in sorted(found, key=lambda one: one.index)] for found in pair]
    differing = sum(one != other for one, other in zip(*texts, strict=True))
    assert comparison["num_changed"] == differing > 0
    assert f"{differing} of {len(texts[0])} answers differ; by exact match 0 are right" in text
    assert {score["name"] for score in comparison["scores"]} == {"exact match", "normalised match"}
    (written,) = Path("benchmark-results").glob("other-toy-*/msrvtt-qa.beside-blip3v-toy-*.json")
    assert json.loads(written.read_text()) == comparison
    assert [cells[1] for cells in our_cells(record, 1)] == ["not judged", "not judged"]
    with serving(StandIn(generous), monkeypatch) as stand_in:
        judge = ("--judge", stand_in.url, "--judge-model", "stand-in")
        judged = record_of(*beside, *judge)
        rows = {score["name"]: score for score in judged["comparison"]["scores"]}
        assert (rows["judge accuracy"]["num_lost"], rows["judge accuracy"]["num_gained"]) == (0, 0)
        assert rows["judge score"]["lost"] == 0
        asked = [judged[name]["judge"]["num_requests"] for name in ("result", "reference")]
        assert sum(asked) == len(stand_in.requests)
        kept = succeed(*beside)
        assert "the judge's scores are not compared; name the judge again" in kept.stderr


def test_what_cannot_be_compared_is_refused(bundle_path: Path, other_bundle: Path, data: Path, tmp_path: Path):
    arguments = ("--benchmark", "nextqa", "--data", data / "nextqa", "-m", bundle_path)
    same = evaluate(*arguments, "--reference", bundle_path)
    assert str(same.exception) == f"{bundle_path} is the model itself; compare {bundle_path} with another one"
    device = evaluate(*arguments, "--reference", other_bundle, "--device", "cuda")
    assert "--device is only for model folders" in str(device.exception)
    nothing = evaluate(*arguments, "--reference", tmp_path / "nothing")
    assert "nothing does not exist" in str(nothing.exception)
    assert not Path("benchmark-results").exists()
    succeed("--benchmark", "nextqa", "--data", data / "nextqa", "-m", other_bundle, "--questions", 1, *QUICK)
    other = evaluate(*arguments, "--reference", other_bundle, *QUICK)
    assert "has predictions of something else: num_samples is 1 there" in str(other.exception)


def test_what_the_folder_lacks_is_told_and_a_broken_clip_is_counted(bundle_path: Path, tmp_path: Path):
    root = lay_out("msvd-qa", tmp_path / "msvd")
    (broken, *_) = sorted((root / "video").iterdir())
    for clip in root.rglob("*.avi"):
        clip.unlink() if clip != broken else None
    for split in ("test", "val", "train"):
        broken.unlink(missing_ok=True)
        broken.write_bytes(b"RIFF no film")
        result = evaluate(
            "--benchmark", "msvd-qa", "--split", split, "--data", root, "-m", bundle_path, *QUICK, "--json"
        )
        if result.exit_code == 0:
            break
        assert isinstance(result.exception, UsageError)
        assert "has none of the" in str(result.exception)
    record = json.loads(result.stdout)
    assert len(record["result"]["unread"]) == record["result"]["header"]["num_samples"]
    assert values(record) == {"exact match": None, "normalised match": None}
    assert f"about {broken.name}: " in result.stderr


def test_without_its_data_it_says_what_to_get_and_where_it_must_lie():
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(command, ["--benchmark", "nextqa"], catch_exceptions=False)
    assert str(caught.value).splitlines() == [
        "--benchmark nextqa needs its data; get NExT-QA (five-way) into one folder",
        "  from:    Xiao et al., https://github.com/doc-doc/NExT-QA, with a link to the videos",
        "  licence: MIT (the repository); the videos are of VidOR, from Flickr, and remain their owners'",
        "  files:   val.csv",
        "           map_vid_vidorID.json and NExTVideo/<path>.mp4 (or NExTVideo/<video>.mp4 without the map)",
        "then name the folder: `blip3v eval --benchmark nextqa --data FOLDER -m MODEL`",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--benchmark", "msvdqa"], "did you mean 'msvd-qa'"),
        (["--benchmark", "mmlu", "--data", "x"], "is unknown; allowed: msvd-qa, "),
        (["--benchmark", "nextqa", "--data", "DATA/msvd-qa"], "contains no val.csv"),
        (["--benchmark", "nextqa", "--data", "DATA/nextqa", "--split", "dev"], "has no split 'dev'"),
        (["--benchmark", "msvd-qa", "--data", "DATA/msvd-qa", "--choose-by", "answer"], "questions have no options"),
        (
            ["--benchmark", "nextqa", "--data", "DATA/nextqa", "--judge", "http://x/v1", "--judge-model", "y"],
            "by the option",
        ),
        (["--benchmark", "msvd-qa", "--data", "DATA/msvd-qa", "--judge", "http://x/v1"], "needs --judge-model"),
        (["--benchmark", "msvd-qa", "--data", "x", "--judge-rate", "3"], "--judge-rate has no effect without --judge"),
        (
            ["--benchmark", "msvd-qa", "--data", "x", "--judge", "x", "--judge-model", "y", "--judge-max-cost", "3"],
            "needs --judge-price",
        ),
        (
            ["--benchmark", "msvd-qa", "--data", "x", "--judge", "x", "--judge-model", "y"],
            "is not the URL of an endpoint",
        ),
        (["--split", "val", "-b", "3"], "--split, --batch-size have no effect without --benchmark"),
        (["--judge", "http://x/v1"], "--judge has no effect without --benchmark"),
    ],
)
def test_what_cannot_be_used_is_refused_before_the_model_is_looked_at(arguments: list[str], words: str, data: Path):
    with pytest.raises(UsageError) as caught:
        CliRunner().invoke(command, [one.replace("DATA", str(data)) for one in arguments], catch_exceptions=False)
    assert words in str(caught.value)


def test_a_model_is_needed_in_the_end(data: Path):
    for arguments in ([], ["--benchmark", "nextqa", "--data", str(data / "nextqa")]):
        with pytest.raises(click.MissingParameter) as caught:
            command.make_context("eval", arguments).invoke(command)
        assert "--model" in caught.value.format_message()


def test_a_price_is_two_numbers():
    for price in ("1", "a,b", "-1,2", "inf,1"):
        result = evaluate("--benchmark", "msvd-qa", "--judge-price", price)
        assert result.exit_code == 2
        assert repr(price) in result.stderr
