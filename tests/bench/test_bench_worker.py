"""The process that holds one bundle: how it ends, and what it does not load."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from blip3v.bench import Shape
from blip3v.bench.worker import Job, Worker
from blip3v.errors import ArtifactMissingError, BackendError

CLIP = Path(__file__).parents[2] / "examples" / "turn.mp4"


def test_a_worker_that_dies_is_an_error_that_says_how(bundles: list[Path]) -> None:
    with Worker(
        Job(bundle=str(bundles[1]), clip=str(CLIP), question="What?", threads=1, backend="onnxruntime")
    ) as worker:
        worker._process.kill()
        with pytest.raises(BackendError, match="ended with code -9"):
            worker.sample()
    assert worker._process.returncode == -9


def test_a_worker_that_cannot_open_its_bundle_is_not_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []
    popen = subprocess.Popen

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        started.append(popen(*arguments, **options))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", start)
    with pytest.raises(ArtifactMissingError):
        Worker(Job(bundle="nowhere", clip=str(CLIP), question="What?", threads=1, backend="onnxruntime"))
    assert started[0].returncode == 0


def test_a_worker_loads_no_training_framework() -> None:
    code = (
        "import sys, blip3v.bench.worker; "
        "print([name for name in ('torch', 'transformers', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_batches_and_requests_at_once_are_measured_in_one_opened_bundle(bundles: list[Path]) -> None:
    job = Job(bundle=str(bundles[1]), clip=str(CLIP), question="What?", threads=1, backend="onnxruntime")
    with Worker(dataclasses.replace(job, num_new_tokens=4)) as worker:
        alone, batch, at_once = (
            worker.sample(shape) for shape in (Shape(), Shape(batch_size=3), Shape(requests_at_once=3))
        )
    assert [len(one.requests) for one in (alone, batch, at_once)] == [1, 3, 3]
    assert {request.num_new_tokens for one in (alone, batch, at_once) for request in one.requests} == {4}
    assert len(alone.requests[0].inter_token_s) == 3
    assert batch.requests[0].inter_token_s == ()  # a batch is not streamed
    assert batch.file_decode_s + batch.video_encoder_s + batch.language_model_s < batch.whole_chain_s
    assert batch.num_steps == 3
    assert len({request.end_to_end_s for request in at_once.requests}) == 3
    assert max(request.end_to_end_s for request in at_once.requests) <= at_once.whole_chain_s
