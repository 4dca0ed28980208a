"""Tuning a toy bundle with the real engines: what is compared, what is written, what an interruption leaves."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v.bundle.reader import open_bundle
from blip3v.bundle.tuning import Candidate, Tuning, tuning_files
from blip3v.data.questions import test_questions
from blip3v.errors import ArtifactError, RequestError, UsageError
from blip3v.runtime import GenerationOptions, VideoLM, VideoTokens
from blip3v.runtime.backends import GraphName
from blip3v.runtime.machine import this_machine
from blip3v.tuning import candidates, run_tune
from blip3v.tuning import graph as tuning_graph
from blip3v.tuning import worker as tuning_worker
from blip3v.tuning.run import _save_inputs
from blip3v.tuning.worker import GraphWorker, Job

# The times are made up, and long: there are three turns.
SMALL: dict[str, Any] = {"seconds": 60.0, "question_tokens": 4, "new_tokens": 4, "num_questions": 2}


class GraphWorkerHere(GraphWorker):
    """A ``GraphWorker`` without a process, whose times are made up: those of ``FASTER`` are the shortest."""

    FASTER: tuple[str, ...] = ()

    def __init__(self, job: Job) -> None:
        self._opened = tuning_worker._opened(dataclasses.asdict(job))
        self._answer: Callable[[Mapping[str, Any] | None], dict[str, Any]] = self._opened.__enter__()
        self._is_faster = job.candidate.backend in self.FASTER
        self.version = self._answer(None)["version"]

    def exchange(self, values: Mapping[str, Any]) -> dict[str, Any]:
        found = self._answer(values)
        if "seconds" in found:
            assert all(value > 0 for value in found["seconds"].values())
            found["seconds"] = dict.fromkeys(found["seconds"], 2.0 if self._is_faster else 2.5)
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.__exit__(None, None, None)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    config = toy_config()
    return write_bundle(tmp_path / "blip3v-toy", config, Weights.random(config.text))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> type[GraphWorkerHere]:
    monkeypatch.setattr(tuning_graph, "GraphWorker", GraphWorkerHere)
    monkeypatch.setattr(tuning_graph, "thread_counts", lambda: [1])
    monkeypatch.setattr(candidates, "settings_to_try", lambda *_: ())  # fewer candidates
    return GraphWorkerHere


def test_the_faster_engine_is_compared_and_chosen(
    bundle: Path, in_process: type[GraphWorkerHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "FASTER", ("onnxruntime",))
    stages: list[str] = []
    result = run_tune(bundle, **SMALL, progress=lambda what, done, total: stages.append(what))
    assert list(dict.fromkeys(stages)) == [
        "video encoder, engines",
        "video encoder, threads",
        "decoder, engines",
        "decoder, threads",
    ]
    encoder, decoder = (result.tuning.graphs[graph] for graph in ("video_encoder", "decoder"))
    assert (encoder.default, encoder.chosen) == (Candidate(backend="openvino"), Candidate(backend="onnxruntime"))
    assert encoder.speedup == 1.25
    compared = {str(each.candidate): each for each in encoder.measured}
    assert compared["onnxruntime"].accuracy.startswith(("error ", "the same results"))
    assert compared["onnxruntime"].allowed is True
    assert compared["openvino"].accuracy == "the default's"
    assert (decoder.chosen, decoder.speedup) == (decoder.default, 1.0)
    assert result.path == Tuning.path(bundle, this_machine())
    assert Tuning.load(result.path) == result.tuning
    with VideoLM.open(bundle) as lm:
        assert lm.backend.video_encoder.backend == "onnxruntime"
        assert lm.backend.tuning is not None
        assert lm.backend.tuning.endswith("video encoder onnxruntime, 1.25x; decoder onnxruntime, the default")


def test_a_faster_engine_with_other_results_is_named_and_not_chosen(
    bundle: Path, in_process: type[GraphWorkerHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_process, "FASTER", ("onnxruntime",))
    save = np.save

    def other_results(path: Path, values: np.ndarray) -> None:
        save(path, values if Path(path).name == "video.npy" else values * 1.5)

    monkeypatch.setattr(np, "save", other_results)
    encoder = run_tune(bundle, **SMALL).tuning.graphs["video_encoder"]
    assert encoder.chosen == encoder.default
    refused = next(each for each in encoder.measured if str(each.candidate) == "onnxruntime")
    assert (refused.speedup, refused.allowed) == (1.25, False)


def test_an_interruption_keeps_the_video_encoder_and_what_there_was_for_the_decoder(
    bundle: Path, in_process: type[GraphWorkerHere], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = run_tune(bundle, **SMALL).tuning
    monkeypatch.setattr(in_process, "FASTER", ("onnxruntime",))

    def interrupted(self: GraphWorkerHere, job: Job) -> None:
        if job.graph == "decoder":
            raise KeyboardInterrupt
        original(self, job)

    original = GraphWorkerHere.__init__
    monkeypatch.setattr(in_process, "__init__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_tune(bundle, **SMALL)
    after = Tuning.load(Tuning.path(bundle, this_machine()))
    assert after.graphs["video_encoder"].chosen == Candidate(backend="onnxruntime")
    assert after.graphs["decoder"] == before.graphs["decoder"]


def test_a_worker_feeds_the_tokens_that_it_is_given(bundle: Path, tmp_path: Path) -> None:
    """In a process of its own: greedy answers, and the same tokens fed to another engine, choose alike."""
    opened = open_bundle(bundle)
    folder = tmp_path / "work"
    folder.mkdir()
    _save_inputs(opened, 5, folder)  # about two films

    def job(graph: GraphName, backend: str) -> Job:
        return Job(
            bundle=str(bundle),
            graph=graph,
            candidate=Candidate(backend=backend, threads=1),
            folder=str(folder),
            prompt_tokens=9,
            num_steps=2,
        )

    with GraphWorkerHere(job("video_encoder", "openvino")) as encoder:
        encoder.encode("video.npy")
        encoder.encode("first.npy", like="video.npy", limit_s=0)
    with GraphWorker(job("decoder", "onnxruntime")) as decoder:
        assert set(decoder.sample()) == {"prefill", "step"}
        decoder.answer("greedy", "video.npy")
        decoder.answer("limited", "video.npy", limit_s=0)
    with GraphWorkerHere(job("decoder", "openvino")) as other:
        other.answer("fed", "video.npy", like="greedy")
    answers = json.loads((folder / "greedy.json").read_text())
    assert len(answers) == 5
    assert json.loads((folder / "limited.json").read_text()) == answers[:1]
    assert np.array_equal(np.load(folder / "first.npy"), np.load(folder / "video.npy")[:1])
    greedy_NV, fed_NV = np.load(folder / "greedy.npy"), np.load(folder / "fed.npy")
    assert greedy_NV.argmax(-1).tolist() == [token for answer in answers for token in answer]
    assert np.allclose(greedy_NV, fed_NV, atol=1e-3)
    with VideoLM.open(bundle, threads=1) as lm:  # the prompt is the one that the runtime builds
        video = VideoTokens(np.load(folder / "video.npy")[0], ((0, None),), lm.encoder)
        answer = lm.ask(video, test_questions(1)[0][1].text, options=GenerationOptions(max_new_tokens=16))
    assert list(answer.token_ids) == [token for token in answers[0] if token != opened.tokenizer.end_id]


@pytest.mark.parametrize(
    ("argument", "kind", "said"),
    [
        ({"seconds": 0.5}, UsageError, "seconds is 0.5; at least 1 is needed"),
        ({"seconds": float("nan")}, UsageError, "seconds is nan"),
        ({"new_tokens": 1}, UsageError, "new_tokens is 1; at least 2"),
        ({"new_tokens": 250}, RequestError, "do not fit the context of 256"),
    ],
)
def test_arguments_are_checked_before_anything_runs(
    bundle: Path, argument: dict[str, Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        run_tune(bundle, **{**SMALL, **argument})
    assert tuning_files(bundle) == []


def test_a_bundle_that_cannot_be_written_to_is_refused_first(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(ArtifactError, match="permission denied"):
        run_tune(bundle, **SMALL)


@pytest.mark.slow
def test_the_command_tunes_and_the_next_one_uses_it(bundle: Path) -> None:
    command = (sys.executable, "-m", "blip3v", "tune", str(bundle), "--seconds", "5", "--questions", "2")
    lengths = ("--question-tokens", "4", "--new-tokens", "4")
    done = subprocess.run([*command, *lengths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "video encoder, a clip: " in done.stdout
    assert "next: " in done.stderr
    shown = subprocess.run([sys.executable, "-m", "blip3v", "inspect", str(bundle)], capture_output=True, text=True)
    assert "tuned on " in shown.stdout
    again = subprocess.run([*command, *lengths, "--json"], capture_output=True, text=True)
    values = json.loads(again.stdout)
    assert Path(values["output"]).is_file()
    assert values["graphs"]["decoder"]["default"]["backend"] == "onnxruntime"
