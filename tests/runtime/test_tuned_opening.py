"""What opening makes of a tuning: when it is used, when it is passed over, and what is said."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip3v.bundle.reader import open_bundle
from blip3v.bundle.tuning import Candidate, TunedGraph, Tuning
from blip3v.bundle.verify import verify_bundle
from blip3v.errors import ArtifactError
from blip3v.runtime import VideoLM
from blip3v.runtime.backends import GRAPHS, GraphName, get_backend
from blip3v.runtime.backends.onnxruntime import OnnxRuntimeBackend
from blip3v.runtime.machine import this_machine
from blip3v.runtime.opening import estimate_open, graph_hash
from blip3v.runtime.tuned import EngineChoice, choose_engines

# The other way round than by the rule.
CHOSEN: dict[GraphName, Candidate] = {
    "video_encoder": Candidate(backend="onnxruntime", threads=1, settings={"spinning": False}),
    "decoder": Candidate(backend="openvino", threads=1),
}


@pytest.fixture
def bundle(bundle_path: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bundle_path, tmp_path / "toy")


def tuned(path: Path, graph: GraphName, candidate: Candidate) -> TunedGraph:
    backend, precision = get_backend(candidate.backend), open_bundle(path).manifest.precision.graphs[graph]
    return TunedGraph(
        graph_sha256=graph_hash(open_bundle(path), graph),
        chosen=candidate,
        engine_version=backend.execution(precision).version or "",
        speedup=1.31,
        default=Candidate(backend="openvino"),
        measured=(),
    )


def a_tuning(path: Path) -> Tuning:
    return Tuning(
        machine=this_machine(),
        date="2026-11-22T12:00:00+00:00",
        graphs={graph: tuned(path, graph, CHOSEN[graph]) for graph in GRAPHS},
        question_tokens=32,
        new_tokens=32,
        budget="a relative error of 0.001",
        command=None,
    )


def choice(path: Path, *, backend: str = "auto", device: str = "auto", threads: int | None = None) -> EngineChoice:
    bundle = open_bundle(path)
    return choose_engines(
        bundle, lambda graph: graph_hash(bundle, graph), backend=backend, device=device, threads=threads
    )


def names(found: EngineChoice) -> list[str]:
    return [found.backends[graph].name for graph in GRAPHS]


def test_a_tuning_of_this_machine_is_taken_and_told(bundle: Path) -> None:
    path = a_tuning(bundle).save(bundle)
    assert Tuning.load(path) == a_tuning(bundle)
    with VideoLM.open(bundle) as lm:
        report = lm.backend
    assert (report.video_encoder.backend, report.decoder.backend) == ("onnxruntime", "openvino")
    assert report.tuning == (
        "tuned on 2026-11-22: video encoder onnxruntime, 1 thread, spinning off, 1.31x; "
        "decoder openvino, 1 thread, 1.31x"
    )
    assert str(report).endswith(report.tuning)
    assert estimate_open(open_bundle(bundle)).backend == report
    encoder = choice(bundle).backends["video_encoder"]
    assert isinstance(encoder, OnnxRuntimeBackend)
    assert encoder._spinning is False
    assert choice(bundle).threads == {"video_encoder": 1, "decoder": 1}


def test_the_bundle_is_as_it_was_written_with_or_without_a_tuning(bundle: Path) -> None:
    path = a_tuning(bundle).save(bundle)
    (path.parent / f".{path.name}.0123abcd.partial").write_text("{")  # of a process that was killed
    assert verify_bundle(bundle).ok
    shutil.rmtree(path.parent)
    assert verify_bundle(bundle).ok
    assert choice(bundle).tuning is None


def test_other_files_in_its_folder_are_refused(bundle: Path) -> None:
    path = a_tuning(bundle).save(bundle)
    (path.parent / "notes.txt").write_text("hello")
    with pytest.raises(ArtifactError, match=r"tuning/notes\.txt"):
        open_bundle(bundle)


def test_what_the_caller_names_wins(bundle: Path) -> None:
    a_tuning(bundle).save(bundle)
    found = choice(bundle, backend="decoder=onnxruntime")
    assert names(found) == ["onnxruntime", "onnxruntime"]
    assert found.threads == {"video_encoder": 1, "decoder": None}
    for asked in (choice(bundle, backend="openvino"), choice(bundle, device="cpu"), choice(bundle, threads=1)):
        assert asked.tuning is None
    assert names(choice(bundle, threads=1)) == ["openvino", "onnxruntime"]  # the rule


def test_a_tuning_of_another_machine_is_passed_over(bundle: Path) -> None:
    machine = dataclasses.replace(this_machine(), cpu="another")
    dataclasses.replace(a_tuning(bundle), machine=machine).save(bundle)
    found = choice(bundle)
    assert names(found) == ["openvino", "onnxruntime"]
    assert found.tuning == f"tuned on another machine, so not used here; run `blip3v tune {bundle}`"


def other_graph(values: dict[str, Any]) -> None:
    values["graphs"]["decoder"]["graph_sha256"] = "0" * 64


def other_version(values: dict[str, Any]) -> None:
    values["graphs"]["decoder"]["engine_version"] = "1.0"


def other_blip3v(values: dict[str, Any]) -> None:
    values["blip3v"] = "0.0.1"


def no_engine(values: dict[str, Any]) -> None:
    values["graphs"]["decoder"]["chosen"]["backend"] = "tensorrt"


def no_setting(values: dict[str, Any]) -> None:
    values["graphs"]["decoder"]["chosen"]["settings"] = {"turbo": True}


def many_threads(values: dict[str, Any]) -> None:
    values["graphs"]["decoder"]["chosen"]["threads"] = 100_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_graph, "is of another decoder: the bundle was exported again since"),
        (other_version, r"was measured with openvino 1\.0; installed is "),
        (other_blip3v, r"was made by blip3v 0\.0\.1"),
        (no_engine, "names tensorrt for the decoder, which is not installed any more"),
        (many_threads, "has 100000 threads, more than this machine's CPUs"),
        (no_setting, "has no settings; turbo cannot be set"),
    ],
)
def test_a_stale_choice_is_passed_over_with_the_reason(
    bundle: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    path = a_tuning(bundle).save(bundle)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    found = choice(bundle)
    assert found.backends["decoder"].name == "onnxruntime"
    assert found.threads["decoder"] is None
    assert found.tuning is not None
    assert re.search(said, found.tuning)
    assert f"run `blip3v tune {bundle}` again" in found.tuning


@pytest.mark.parametrize("text", ["{", "[]", '{"schema_version": 2}', '{"schema_version": 1}'])
def test_a_damaged_tuning_never_keeps_a_bundle_from_opening(bundle: Path, text: str) -> None:
    path = a_tuning(bundle).save(bundle)
    path.write_text(text)
    found = choice(bundle)
    assert names(found) == ["openvino", "onnxruntime"]
    assert found.tuning is not None
    assert found.tuning.startswith(f"the tuning was passed over: {path}")


def test_one_graph_may_be_tuned_alone(bundle: Path) -> None:
    tuning = a_tuning(bundle)
    dataclasses.replace(tuning, graphs={"video_encoder": tuning.graphs["video_encoder"]}).save(bundle)
    found = choice(bundle)
    assert names(found) == ["onnxruntime", "onnxruntime"]
    assert found.tuning == "tuned on 2026-11-22: video encoder onnxruntime, 1 thread, spinning off, 1.31x"
