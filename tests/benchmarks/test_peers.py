"""benchmarks/peers: peers beside ours in turns, what could not be run, runs that go on, and the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.peers import checkpoint, environments, peer_list, run, table, turns
from benchmarks.peers.client import PeerError
from benchmarks.peers.peer_list import ANSWERS, OURS, PEERS, Peer, Stack
from benchmarks.peers.result import Result
from blip3v.errors import UsageError

STAND_IN = Path(__file__).parent / "peer_stand_in.py"
FIXTURE = Path(__file__).parent / "peers_result.json"
PAGE = Path(__file__).parent / "peers_page.md"


def stand_in(engine: str, form: str = "int8", *, bits: int = 8, parts: tuple[str, ...] = ("decoder",)) -> Peer:
    return Peer(what=engine, file=STAND_IN, requirements=None, form=form, engine=engine, bits=bits, parts=parts)


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> dict[str, Peer]:
    """Stand-ins under names of their own; ours takes a second."""
    found = {"ours-int8": stand_in("1.0"), "twice": stand_in("2.0"), "thrice": stand_in("3.0")}
    answers = {"answer-ours": Stack(what="ours", tower="ours-int8", decoder="ours-int8")}
    answers["answer-twice"] = Stack(what="twice", tower="ours-int8", decoder="twice")
    for module in (run, peer_list):
        monkeypatch.setattr(module, "PEERS", found)
        monkeypatch.setattr(module, "ANSWERS", answers)
    ours = {part: {8: "ours-int8"} for part in ("decoder", "tower")}
    monkeypatch.setattr(run, "OURS", ours | {"answer": {8: "answer-ours"}})

    def write_checkpoint(folder: Path, config: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sizes.json").write_text(json.dumps({"num_ids": 600, "image_size": 4}), "utf-8")

    monkeypatch.setattr(run, "write_checkpoint", write_checkpoint)
    monkeypatch.setattr(environments, "describe", lambda *words: {"packages": {"stand-in": "1"}, "size_bytes": None})
    return found


def measured(folder: Path, *words: str) -> dict[str, Any]:
    amounts = ["--shape", "tiny", "--prompts", "5", "--steps", "2", "--frames", "2", "--seconds", "0", "--threads", "1"]
    run.main([str(folder), str(folder / "result.json"), *amounts, *words])
    return dict(json.loads((folder / "result.json").read_text("utf-8")))


def test_peers_are_measured_beside_ours_in_turns(tmp_path: Path, peers: dict[str, Peer]) -> None:
    peers["ours-int8"] = stand_in("1.0", parts=("decoder", "tower"))
    result = measured(tmp_path, "--peers", "twice,ours-int8")
    decoder, tower = result["groups"]
    assert (decoder["peers"], tower["peers"]) == (["ours-int8", "twice"], ["ours-int8"])
    assert len(decoder["turns"]) == turns.MIN_TURNS
    assert decoder["turns"][0]["twice"] == {"prefill_5_s": 10.0, "steps_5_s": [2.0, 2.0]}
    assert decoder["summary"]["twice"]["step_5_s"] == {"median_s": 2.0, "ratio": 2.0, "lowest": 2.0, "highest": 2.0}
    assert tower["summary"]["ours-int8"]["encode_s"]["ratio"] == 1
    # The second turn's prompt begins with 14, and each stand-in adds its seconds.
    assert decoder["cosine_to_ours"]["twice"] == pytest.approx(turns.cosine([14, 2], [14, 1]))
    assert decoder["peak_rss_bytes"]["twice"] is None or decoder["peak_rss_bytes"]["twice"] > 2**20
    assert result["not_run"] == {}
    assert result["environments"] == {"blip3v": {"packages": {"stand-in": "1"}, "size_bytes": None}}


def test_an_answer_is_a_tower_and_then_a_decoder(tmp_path: Path, peers: dict[str, Peer]) -> None:
    result = measured(tmp_path, "--peers", "answer-ours,answer-twice")
    (group,) = result["groups"]
    assert (group["part"], group["peers"]) == ("answer", ["answer-ours", "answer-twice"])
    for turn in group["turns"]:
        sample = turn["answer-twice"]
        assert (sample["prefill_s"], sample["steps_s"]) == (10.0, 2.0 * (turns.ANSWER_TOKENS - 1))
        assert sample["answer_s"] == sample["encode_s"] + sample["prefill_s"] + sample["steps_s"]
    assert group["summary"]["answer-twice"]["step_s"]["ratio"] == 2


def test_a_ratio_is_the_median_of_those_within_a_turn() -> None:
    """A machine that slows down in one turn slows both sides."""
    pairs = [(2.0, 4.0), (10.0, 40.0), (3.0, 9.0)]
    found = turns.summary(
        [{"ours": {"encode_s": ours}, "peer": {"encode_s": theirs}} for ours, theirs in pairs], "ours"
    )
    assert found["peer"]["encode_s"] == {"median_s": 9.0, "ratio": 3.0, "lowest": 2.0, "highest": 4.0}


def test_what_cannot_be_run_is_in_the_result_with_its_reason(tmp_path: Path, peers: dict[str, Peer]) -> None:
    peers |= {"no format": stand_in("1.0", "unknown-format"), "no version": stand_in("cannot-open")}
    peers["no instruction"] = stand_in("dies")
    result = measured(tmp_path, "--peers", "no format,no version,no instruction,twice")
    assert result["groups"][0]["peers"] == ["ours-int8", "twice"]
    assert result["not_run"] == {
        "no format": {"decoder": "preparing failed: ValueError: there is no format unknown-format"},
        "no version": {"decoder": "not opened: RuntimeError: the weights are of another version"},
        "no instruction": {"decoder": "not run: illegal instruction"},
    }


def test_nothing_is_measured_without_ours(tmp_path: Path, peers: dict[str, Peer]) -> None:
    peers["ours-int8"] = stand_in("cannot-open")
    result = measured(tmp_path, "--peers", "twice")
    assert result["groups"] == []
    reason = "not opened: RuntimeError: the weights are of another version"
    assert result["not_run"] == {
        "ours-int8": {"decoder": reason},
        "twice": {"decoder": f"not measured: ours-int8, which it is compared with, failed: {reason}"},
    }
    peers["ours-int8"] = stand_in("1.0")  # the next run tries them again
    assert measured(tmp_path, "--peers", "twice")["not_run"] == {}


def test_a_peer_that_is_in_the_result_is_measured_again_only_when_asked(tmp_path: Path, peers: dict[str, Peer]) -> None:
    first = measured(tmp_path, "--peers", "twice")
    assert measured(tmp_path, "--peers", "twice,ours-int8") == first
    more = measured(tmp_path, "--peers", "twice,thrice")  # thrice beside ours, which is measured again
    assert [group["peers"] for group in more["groups"]] == [["ours-int8", "twice"], ["ours-int8", "thrice"]]
    peers["twice"] = stand_in("2.5")
    again = measured(tmp_path, "--peers", "twice", "--again")
    assert [group["peers"] for group in again["groups"]] == [["ours-int8", "thrice"], ["ours-int8", "twice"]]
    assert again["groups"][1]["summary"]["twice"]["step_5_s"]["ratio"] == 2.5


def test_what_is_asked_for_is_checked_before_anything_is_written(tmp_path: Path, peers: dict[str, Peer]) -> None:
    with pytest.raises(
        SystemExit, match="there is no peer vllm; allowed: ours-int8, twice, thrice, answer-ours, answer-twice"
    ):
        measured(tmp_path, "--peers", "vllm")
    with pytest.raises(SystemExit, match="there is no part encoder; allowed: decoder, tower, answer"):
        measured(tmp_path, "--parts", "encoder")
    with pytest.raises(
        SystemExit, match="none of twice has a tower to measure; leave out --parts tower, or name others"
    ):
        measured(tmp_path, "--peers", "twice", "--parts", "tower")
    with pytest.raises(SystemExit, match="need 2102 positions; the model has 2048; give smaller --prompts or --steps"):
        measured(tmp_path, "--prompts", "2100")
    assert list(tmp_path.iterdir()) == []


def test_a_result_with_another_setup_is_not_added_to(tmp_path: Path, peers: dict[str, Peer]) -> None:
    setup = {"shape": "tiny", "layers": 2, "vision_layers": 4, "prompts": [5], "steps": 2, "frames": 2, "threads": 1}
    Result(tmp_path / "result.json", setup).save()
    with pytest.raises(
        SystemExit, match="was measured with layers 2, not 3; repeat its options, or choose another OUT"
    ):
        measured(tmp_path, "--peers", "twice", "--layers", "3")
    (tmp_path / "result.json").write_text('{"schema_version": 7}', "utf-8")
    with pytest.raises(SystemExit, match="has schema_version 7; 1 is read; choose another OUT"):
        measured(tmp_path, "--peers", "twice")


def test_a_package_that_does_not_install_is_a_reason(tmp_path: Path) -> None:
    script = "import sys; print('Collecting'); sys.exit('ERROR: No matching distribution found for nothing')"
    with pytest.raises(PeerError, match="not installed: ERROR: No matching distribution found for nothing"):
        environments._run([sys.executable, "-c", script], tmp_path / "log.txt")


def test_an_environment_is_made_again_when_its_requirements_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def made(command: list[str], log: Path) -> None:
        ran.append(command)
        (tmp_path / "envs/some").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(environments, "_run", made)
    (tmp_path / "some.txt").write_text("a==1\n", "utf-8")
    (tmp_path / "some.no-deps.txt").write_text("b==2\n", "utf-8")
    for _ in range(2):
        environments.environment_python("some", tmp_path, tmp_path)
    assert [command[-1] for command in ran[1:]] == [str(tmp_path / name) for name in ("some.txt", "some.no-deps.txt")]
    assert ["--no-deps" in command for command in ran] == [False, False, True]
    (tmp_path / "some.txt").write_text("a==2\n", "utf-8")
    environments.environment_python("some", tmp_path, tmp_path)
    assert len(ran) == 6


def test_every_peer_has_its_module_and_pinned_requirements() -> None:
    for name, peer in PEERS.items():
        assert peer.file.is_file(), name
        assert all(part in PEERS[OURS[part][peer.bits]].parts for part in peer.parts), name
        if peer.requirements is not None:
            assert (environments.REQUIREMENTS / f"{peer.requirements}.txt").is_file(), name
    for name, stack in ANSWERS.items():
        assert "tower" in PEERS[stack.tower].parts, name
        assert "decoder" in PEERS[stack.decoder].parts, name
        assert OURS["answer"][peer_list.bits_of(name)] in ANSWERS, name
    for file in environments.REQUIREMENTS.iterdir():
        lines = [line for line in file.read_text("utf-8").splitlines() if not line.startswith("#")]
        assert lines, file
        assert all("==" in line for line in lines), file


def test_the_table_is_made_from_a_result(tmp_path: Path) -> None:
    """After an intended change: python benchmarks/peers/table.py tests/benchmarks/peers_result.json THE_PAGE."""
    page = tmp_path / "peers.md"
    for _ in range(2):  # the second time it replaces the first
        table.main(FIXTURE, page)
        assert page.read_text("utf-8") == PAGE.read_text("utf-8")


def test_a_checkpoint_of_another_shape_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text("{}", "utf-8")
    checkpoint.cut_config("tiny", 1, 1).save(tmp_path / "model.json")
    checkpoint.write_checkpoint(tmp_path, checkpoint.cut_config("tiny", 1, 1))
    with pytest.raises(UsageError, match="holds a model of another shape; choose another FOLDER, or delete it"):
        checkpoint.write_checkpoint(tmp_path, checkpoint.cut_config("tiny", 2, 1))


@pytest.mark.slow
def test_ours_is_measured_beside_the_transformers_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this environment, so that nothing is installed. Equal logits show that the weights are the same."""
    import dataclasses

    names = ("transformers-fp32", "transformers-bf16")
    here = {name: dataclasses.replace(PEERS[name], requirements=None) for name in names}
    monkeypatch.setattr(run, "PEERS", PEERS | here)
    chosen = "ours-int8,ours-int4,ours-openvino-int8,transformers-fp32,transformers-bf16"
    result = measured(tmp_path, "--peers", chosen, "--layers", "1", "--vision-layers", "1", "--frames", "8")
    assert result["not_run"] == {}
    assert {"torch", "onnxruntime"} <= result["environments"]["blip3v"]["packages"].keys()
    groups = {(group["part"], group["ours"]): group for group in result["groups"]}
    assert list(groups) == [
        ("decoder", "ours-fp16"),
        ("decoder", "ours-int8"),
        ("decoder", "ours-int4"),
        ("tower", "ours-openvino-fp16"),
        ("tower", "ours-openvino-int8"),
    ]
    assert groups["decoder", "ours-fp16"]["cosine_to_ours"]["transformers-fp32"] > 0.9999
    assert groups["tower", "ours-openvino-fp16"]["peers"] == ["ours-openvino-fp16", *names]
