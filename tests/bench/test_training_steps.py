"""The trainer's step as it is measured: what it trains, what rows share, and what it has to do."""

from __future__ import annotations

import dataclasses
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip3v.bench.arithmetic import training_operations
from blip3v.bench.training import device, steps
from blip3v.bench.training.device import gemm_rate, peak_bytes, reset_peak
from blip3v.bench.training.random_model import row_config
from blip3v.bench.training.report import TrainingReport, TrainingRow, TrainingSetup
from blip3v.bench.training.rows import BASELINE, ROWS, Row
from blip3v.bench.training.run import _sample, check_memory, run_training, setup_of
from blip3v.bench.training.steps import Trainee, synthetic_batch
from blip3v.config import ModelConfig, preset
from blip3v.errors import OutOfMemoryError, UsageError
from blip3v.training.batch import Batch

CPU = torch.device("cpu")


def small() -> ModelConfig:
    """Of tiny, with few patches and layers."""
    tiny = preset("tiny")
    return dataclasses.replace(
        tiny,
        num_frames=2,
        vision=dataclasses.replace(tiny.vision, image_size=16, num_layers=1),
        resampler=dataclasses.replace(tiny.resampler, depth=1),
        text=dataclasses.replace(tiny.text, num_layers=1),
    )


def trainee_of(*rows: Row) -> Trainee:
    return Trainee(small(), rows, precision="fp32", device="cpu")


def batch_of(num_clips: int = 1) -> Batch:
    return synthetic_batch(small(), num_clips, question_tokens=3, answer_tokens=2, device=CPU, dtype=torch.float32)


def test_a_step_trains_all_but_the_vision_encoder() -> None:
    row = Row("gttm", 128)
    trainee = trainee_of(row)
    model = trainee.shared.use(row)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    losses = [trainee.step(row, batch_of()) for _ in range(2)]
    assert losses[1] < losses[0]
    moved = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert {name.partition(".")[0] for name in moved} == {"vision_tokenizer", "lang_model"}
    assert any(".temporal_encoder." in name for name in moved)
    assert all(weight.grad is None for weight in model.parameters())


def test_it_is_the_trainers_own_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "train_step", lambda *of, max_grad_norm: max_grad_norm)
    row = Row("none", 256)
    assert trainee_of(row).step(row, batch_of()) == 1.0  # of the recipe


def test_too_little_memory_says_what_takes_less(monkeypatch: pytest.MonkeyPatch) -> None:
    def step(*of: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(Trainee, "step", step)
    with pytest.raises(OutOfMemoryError, match=r"4 clips with 16 video tokens does not fit .*1 GiB") as caught:
        _sample(trainee_of(ROWS[3]), ROWS[3], batch_of(), 4)
    assert "gradient_checkpointing=True" in str(caught.value)


def test_rows_share_the_state_of_all_but_their_encoders() -> None:
    rows = Row("none", 256), Row("tokenlearner", 16)
    trainee = trainee_of(*rows)
    for row in rows:
        trainee.step(row, batch_of())
    shared, own = (trainee.optimizers[row] for row in rows)
    assert shared.state is own.state
    weight = trainee.shared.model.lang_model.lm_head.weight
    assert own.state[weight]["step"] == 2
    encoder = next(trainee.shared.encoders[rows[1]].parameters())
    assert own.state[encoder]["step"] == 1


def test_checkpointing_computes_again_and_can_be_undone() -> None:
    row = Row("tokenlearner", 16)
    trainee, calls = trainee_of(row), list[None]()
    attention = trainee.shared.model.lang_model.get_submodule("model.layers.0.self_attn")
    attention.register_forward_hook(lambda *_: calls.append(None))
    counts = []
    for on in (False, True, True, False):
        trainee.set_checkpointing(on)
        calls.clear()
        trainee.step(row, batch_of())
        counts.append(len(calls))
    assert counts == [1, 2, 2, 1]


def test_a_batch_is_one_question_a_clip_with_labels_on_the_answer() -> None:
    batch = batch_of(3)
    assert batch.ids_CL.shape == (3, 6)
    assert (batch.labels_CL[:, :4] == -100).all()
    assert torch.equal(batch.labels_CL[:, 4:], batch.ids_CL[:, 4:])
    assert batch.pictures is not None
    pixels_CTCHW = batch.pictures.pixels()
    assert pixels_CTCHW.shape == (3, 2, 3, 16, 16)
    assert -1 <= pixels_CTCHW.min() < pixels_CTCHW.max() <= 1


@pytest.mark.parametrize("row", [Row("tokenlearner", 16), Row("none", 256)], ids=str)
def test_operations_are_those_that_pytorch_counts(row: Row) -> None:
    """But for attention, of which PyTorch counts the whole square."""
    trainee, batch = trainee_of(row), batch_of()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trainee.step(row, batch)
    config = row_config(small(), row)
    expected = training_operations(config, num_text_tokens=6, num_answer_tokens=2)
    assert expected is not None
    text, num_tokens = config.text, config.num_video_tokens + 5
    unseen = num_tokens**2 - num_tokens * (num_tokens + 1) // 2
    unseen_operations = 3 * 2 * 2 * text.num_heads * text.head_dim * unseen * text.num_layers
    assert counter.get_total_flops() == pytest.approx(expected + unseen_operations, rel=0.02)


def test_peak_and_gemm_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device._GEMM_SIDE, "cpu", 256)
    reset_peak(CPU)
    before, kept = peak_bytes(CPU), torch.ones(2**26)
    after = peak_bytes(CPU)
    assert before is not None
    assert after is not None
    assert after - before > 0.5 * kept.nbytes
    assert gemm_rate(CPU, torch.float32) > 1e8


def test_a_run_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip3v.bench.training.run.preset", lambda name: small())
    monkeypatch.setattr("blip3v.bench.training.run.gemm_rate", lambda *of: 1e11)
    setup = setup_of("tiny", precision="fp32", device="cpu", question_tokens=3, new_tokens=2, warmup=1, repetitions=2)
    seen: list[tuple[int, int]] = []
    report = run_training(
        setup,
        batch_sizes=(1, 2),
        precision="fp32",
        device="cpu",
        rows=(Row("none", 256), Row("tokenlearner", 16)),
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(done, 12) for done in range(1, 13)]
    assert [(row.row.encoder, row.batch_size) for row in report.rows] == [
        ("none", 1),
        ("tokenlearner", 1),
        ("none", 2),
        ("tokenlearner", 2),
    ]
    for row in report.to_dict()["rows"]:
        assert len(row["step_s"]) == len(row["losses"]) == 2
        assert row["share"] == pytest.approx(row["operations"] / row["stages"]["step_s"]["p50"] / 1e11)
        assert row["peak_bytes"] > 2**26


def report_of(*times: tuple[Row, int, tuple[float, ...]]) -> TrainingReport:
    setup = TrainingSetup(
        preset="tiny",
        device="cpu",
        precision="fp32",
        gradient_checkpointing=False,
        threads=2,
        question_tokens=32,
        new_tokens=32,
        warmup=1,
        repetitions=3,
    )
    rows = [
        TrainingRow(
            row=row,
            batch_size=size,
            config_sha256="ab" * 32,
            num_frames=8,
            operations=10**9,
            step_s=step_s,
            losses=(1.0,) * len(step_s),
            peak_bytes=2**30,
        )
        for row, size, step_s in times
    ]
    return TrainingReport(setup=setup, rows=tuple(rows), environment={}, gemm_per_s=1e9)


def test_ratios_are_within_turns_and_to_the_baseline_of_the_batch() -> None:
    found = report_of(
        (BASELINE, 4, (2.0, 4.0, 9.0)),
        (ROWS[2], 4, (1.0, 1.0, 3.0)),
        (BASELINE, 8, (8.0, 8.0, 8.0)),
        (ROWS[2], 8, (4.0, 4.0, 4.0)),
    ).to_dict()["rows"]
    assert [row["training"]["ratio"] for row in found] == [1.0, 3.0, 1.0, 2.0]
    assert [row["training"]["samples_per_s"] for row in found] == [1.0, 4.0, 1.0, 2.0]
    assert found[1]["training"]["paper_samples_per_s"] == 8.2
    assert found[1]["training"]["paper_ratio"] == pytest.approx(8.2 / 3.3)
    assert found[1]["tokens_per_s"] == 4 * (32 + 64)
    assert found[1]["share"] == 1.0


def test_a_row_that_the_paper_lacks_has_no_number_of_its() -> None:
    (found,) = report_of((Row("mean", 64), 4, (1.0, 1.0, 1.0))).to_dict()["rows"]
    assert found["training"] == {
        "samples_per_s": 4.0,
        "ratio": None,
        "paper_samples_per_s": None,
        "paper_ratio": None,
    }


def test_the_4b_model_is_refused_where_its_state_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip3v.runtime.memory.available_bytes", lambda: 24 * 2**30)
    setup = setup_of(
        "xgen-mm-vid", precision="bf16", device="cpu", question_tokens=32, new_tokens=32, warmup=1, repetitions=1
    )
    with pytest.raises(OutOfMemoryError, match=r"bf16, activations not counted, needs about \d+\.\d GiB") as caught:
        check_memory(setup, "bf16", rows=ROWS[:1])
    assert "bf16-weights" in str(caught.value)


def test_a_gpu_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    turns = partial(setup_of, "tiny", precision="fp32", question_tokens=1, new_tokens=2, warmup=0, repetitions=1)
    with pytest.raises(UsageError, match="torch finds no CUDA device"):
        turns(device="cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="threads have no effect on a GPU"):
        turns(threads=1)
