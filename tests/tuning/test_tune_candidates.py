"""What is tried: every engine that runs the graph, the default first, and few numbers of threads."""

from __future__ import annotations

import os

import pytest
from toy_bundle import write_bundle
from toy_graphs import Weights, toy_config

from blip3v.bundle.reader import Bundle, open_bundle
from blip3v.bundle.tuning import Candidate
from blip3v.runtime.backends import GraphName, get_backend
from blip3v.tuning import candidates
from blip3v.tuning.turns import Timed


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    config = toy_config()
    return open_bundle(write_bundle(tmp_path_factory.mktemp("tune") / "toy", config, Weights.random(config.text)))


@pytest.mark.parametrize(("graph", "default"), [("video_encoder", "openvino"), ("decoder", "onnxruntime")])
def test_every_engine_is_tried_as_it_is_and_with_its_settings(bundle: Bundle, graph: GraphName, default: str) -> None:
    found = candidates.variants(bundle, graph)
    assert found[0] == Candidate(backend=default)
    for name in ("onnxruntime", "openvino"):
        assert Candidate(backend=name) in found
    assert Candidate(backend="onnxruntime", settings={"spinning": False}) in found
    assert len({str(each) for each in found}) == len(found)


def test_an_engine_that_is_not_installed_is_not_tried(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(get_backend("openvino")), "is_installed", lambda self: False)
    assert {each.backend for each in candidates.variants(bundle, "video_encoder")} == {"onnxruntime"}


@pytest.mark.parametrize(
    ("physical", "logical", "counts"),
    [(2, 2, [1]), (1, 1, []), (4, 8, [1, 2, 8]), (64, 64, [1, 32]), (1, 2, [2]), (None, 6, [1, 3])],
)
def test_few_numbers_of_threads_besides_the_default(
    monkeypatch: pytest.MonkeyPatch, physical: int | None, logical: int, counts: list[int]
) -> None:
    monkeypatch.setattr(candidates, "physical_cores", lambda: physical)
    monkeypatch.setattr(os, "cpu_count", lambda: logical)
    assert candidates.thread_counts() == counts
    narrow = Candidate(backend="onnxruntime", settings={"spinning": False})
    made = candidates.with_threads(narrow, counts)
    assert [(each.threads, each.settings) for each in made] == [(count, narrow.settings) for count in counts]
    assert candidates.with_threads(Candidate(backend="tensorrt"), counts) == []


def test_a_candidate_is_named_for_people() -> None:
    assert str(Candidate(backend="openvino:cpu-bf16", threads=1)) == "openvino:cpu-bf16, 1 thread"
    assert str(Candidate(backend="onnxruntime", threads=4, settings={"spinning": False})) == (
        "onnxruntime, 4 threads, spinning off"
    )


def timed(backend: str, prefill: float, step: float, *, in_turns: bool = True) -> Timed:
    times = {"prefill": prefill, "step": step}
    return Timed(candidate=Candidate(backend=backend), first_s=times, turns=(times,) if in_turns else ())


def test_the_engine_for_prompts_and_the_one_for_steps_are_a_pair(bundle: Bundle) -> None:
    slow_but_first = timed("openvino", 1.0, 9.0, in_turns=False)  # its prompts count, though it was left out
    broken = Timed(candidate=Candidate(backend="tensorrt"), why_not="does not run")
    pair = candidates.pair_of(bundle, [timed("onnxruntime", 2.0, 1.0), slow_but_first, broken])
    assert pair == Candidate(backend="openvino+onnxruntime")
    assert candidates.pair_of(bundle, [timed("onnxruntime", 1.0, 1.0), slow_but_first]) is None
    assert candidates.pair_of(bundle, [timed("onnxruntime", 2.0, 1.0), timed("tensorrt", 1.0, 2.0)]) is None
