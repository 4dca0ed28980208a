"""Answers of the reference by checking drafts, and graphs compared with them, against greedy decoding."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_models import WINDOWED, Exported, FloatArray, small_config
from toy_parts import cpu_backends

from blip3v.bundle.embeddings import write_embeddings
from blip3v.bundle.precision import Precision
from blip3v.config import ModelConfig
from blip3v.errors import BackendError
from blip3v.export import accuracy_graphs
from blip3v.export.accuracy_answers import compare_answers
from blip3v.export.accuracy_graphs import Draft, Graphs
from blip3v.export.accuracy_reference import AnswerRules, ClipPrompt, Reference
from blip3v.export.accuracy_run import runnable_backends
from blip3v.model import Blip3Video
from blip3v.model.generate import greedy
from blip3v.model.language import embedding_table
from blip3v.model.weights import random_model
from blip3v.text.prompt import Prompt

NUM_TOKENS = 9


def some_prompts(config: ModelConfig) -> list[ClipPrompt]:
    """Seven questions of several lengths about three clips, two of which begin differently before the video."""
    rng = np.random.default_rng(3)
    image = config.text.num_base_tokens
    prompts = []
    for clip, before, after in [(0, 2, 5), (0, 2, 3), (0, 4, 5), (1, 2, 8), (2, 2, 1), (2, 2, 6), (2, 2, 6)]:
        ids = [*range(before), image, *rng.integers(0, image, after).tolist()]
        prompts.append(ClipPrompt(clip, Prompt(ids, before)))
    return prompts


def some_video(config: ModelConfig) -> list[FloatArray]:
    rng = np.random.default_rng(4)
    return [rng.normal(0, 0.3, (6, config.text.hidden_size)).astype(np.float32) for _ in range(3)]


def greedy_answers(
    model: Blip3Video, prompts: Sequence[ClipPrompt], video: Sequence[FloatArray], rules: AnswerRules
) -> list[list[int]]:
    """By the transformers library's own loop, one prompt at a time; with the token that ends an answer."""
    answers = []
    for asked in prompts:
        [ids] = greedy(
            model,
            torch.tensor([asked.prompt.ids]),
            torch.tensor([asked.prompt.image_position]),
            torch.from_numpy(video[asked.clip])[None],
            max_new_tokens=rules.max_new_tokens,
            stop_id=rules.end_id,
        )
        answers.append(ids if len(ids) == rules.max_new_tokens else [*ids, rules.end_id])
    return answers


def rules_that_end_some(model: Blip3Video, prompts: Sequence[ClipPrompt], video: Sequence[FloatArray]) -> AnswerRules:
    """The end token is one that an answer really contains."""
    whole = greedy_answers(model, prompts, video, AnswerRules(end_id=-1, max_new_tokens=NUM_TOKENS))
    return AnswerRules(end_id=whole[0][4], max_new_tokens=NUM_TOKENS)


@pytest.mark.parametrize("text", [{}, WINDOWED], ids=["full", "windowed"])
@pytest.mark.parametrize("share", [0.0, 0.7, 1.0], ids=["all wrong", "some right", "all right"])
def test_any_drafts_lead_to_the_greedy_answers(text: dict[str, int], share: float) -> None:
    config = small_config("tokenlearner", **text)
    model = random_model(config)
    prompts, video = some_prompts(config), some_video(config)
    rules = rules_that_end_some(model, prompts, video)
    wanted = greedy_answers(model, prompts, video, rules)
    assert len({len(answer) for answer in wanted}) > 1, "no answer ends early"

    reference = Reference(config, model.state_dict(), prompts, video, rules)
    rng = np.random.default_rng(5)
    most_wrong = 0
    while not all(answer.is_complete for answer in reference.answers):
        drafts = {}
        for i, answer in enumerate(reference.answers):
            known = len(answer.token_ids)
            rest = [t if rng.random() < share else (t + 1) % config.text.num_logits for t in wanted[i][known:]]
            drafts[i] = [*answer.token_ids, *rest]
        reference.check(drafts)
        most_wrong += 1
    assert [answer.token_ids for answer in reference.answers] == wanted
    assert reference.num_passes == most_wrong <= max(map(len, wanted))
    assert all(len(answer.logits) == len(answer.token_ids) for answer in reference.answers)
    if share == 1.0:
        assert reference.num_passes == 1


class PartlyWrong:
    """In place of ``Graphs``: every third token is wrong, and the ``fails_at``-th draft fails."""

    def __init__(
        self, prompts: Sequence[ClipPrompt], wanted: Sequence[list[int]], num_logits: int, fails_at: int
    ) -> None:
        self._wanted = {id(asked): answer for asked, answer in zip(prompts, wanted, strict=True)}
        self._num_logits, self._calls_left = num_logits, fails_at - 1

    def draft(
        self, prompts: Sequence[ClipPrompt], video: Sequence[FloatArray], known: Sequence[Sequence[int]]
    ) -> list[Draft]:
        if self._calls_left == 0:
            raise BackendError("the engine failed")
        self._calls_left -= 1
        drafts = []
        for asked, ids in zip(prompts, known, strict=True):
            rest = self._wanted[id(asked)][len(ids) :]
            tokens = [(t + (n % 3 == 2)) % self._num_logits for n, t in enumerate(rest)]
            drafts.append(Draft(tokens, np.zeros((len(tokens), self._num_logits), np.float32)))
        return drafts

    def make_room(self, num_bytes: int) -> None:
        pass


def test_an_engine_that_fails_part_way_leaves_the_next_one_a_sound_reference() -> None:
    """Its incomplete answers stayed, the next engine's drafts did not begin with them, and 1,3,6 became 1,6,6."""
    config = small_config("tokenlearner")
    model = random_model(config)
    prompts, video = some_prompts(config), some_video(config)
    rules = rules_that_end_some(model, prompts, video)
    wanted = greedy_answers(model, prompts, video, rules)
    reference = Reference(config, model.state_dict(), prompts, video, rules)
    num_logits = config.text.num_logits
    with pytest.raises(BackendError):
        compare_answers(cast(Graphs, PartlyWrong(prompts, wanted, num_logits, fails_at=3)), reference, prompts, video)
    assert {answer.is_complete for answer in reference.answers} == {True, False}
    complete = [answer for answer in reference.answers if answer.is_complete]
    compare_answers(cast(Graphs, PartlyWrong(prompts, wanted, num_logits, fails_at=99)), reference, prompts, video)
    assert [answer.token_ids for answer in reference.answers] == wanted
    assert all(any(answer is kept for answer in reference.answers) for kept in complete), "computed again"

    fresh = Reference(config, model.state_dict(), prompts, video, rules)
    fresh.check(dict(enumerate(wanted)))
    for one, other in zip(reference.answers, fresh.answers, strict=True):
        np.testing.assert_allclose(np.stack(one.logits), np.stack(other.logits), atol=1e-5)


def test_a_draft_that_contradicts_what_is_known_is_refused() -> None:
    """Its logits would have been taken for those after the known tokens."""
    config = small_config("tokenlearner")
    model = random_model(config)
    prompts, video = some_prompts(config)[:1], some_video(config)
    reference = Reference(config, model.state_dict(), prompts, video, AnswerRules(end_id=-1, max_new_tokens=NUM_TOKENS))
    reference.check({0: [0]})
    known = list(reference.answers[0].token_ids)
    for draft in ([known[0] + 1, 0], known):
        with pytest.raises(ValueError, match="has to begin with"):
            reference.check({0: draft})
    assert reference.answers[0].token_ids == known


def write_parts(folder: Path, config: ModelConfig, model: Blip3Video, decoder: Path) -> Path:
    """The part of a bundle that answers need: the decoder and the embeddings."""
    (folder / "onnx").mkdir(parents=True)
    for file in decoder.parent.glob("decoder.*"):
        shutil.copy(file, folder / "onnx")
    table_VD = embedding_table(model.state_dict(), config.text).numpy()
    write_embeddings(folder / "embeddings.safetensors", table_VD)
    return folder


@pytest.mark.parametrize("chunk", [256, 8], ids=["rows together", "one by one"])
@pytest.mark.parametrize("backend", cpu_backends())
def test_an_exact_graph_agrees_everywhere(
    decoder: Callable[[str], Exported], tmp_path: Path, backend: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = decoder("fp32")
    config, model = exported.model.config, exported.model
    prompts, video = some_prompts(config), some_video(config)
    rules = rules_that_end_some(model, prompts, video)
    reference = Reference(config, model.state_dict(), prompts, video, rules)
    folder = write_parts(tmp_path / "bundle", config, model, exported.path)
    monkeypatch.setattr(accuracy_graphs, "_MAX_ROWS", 3)  # more than one group of rows
    monkeypatch.setattr(accuracy_graphs, "PREFILL_CHUNK", chunk)  # longer prompts share what they begin with
    chosen = runnable_backends([backend])[backend]
    with closing(Graphs(folder, config, Precision.parse("fp32"), chosen, rules)) as graphs:
        answers = compare_answers(graphs, reference, prompts, video)
    wanted = greedy_answers(model, prompts, video, rules)
    assert answers.own == wanted
    assert [answer.token_ids for answer in reference.answers] == wanted
    assert answers.agreeing == sum(map(len, wanted)) == len(np.concatenate(answers.kl))
    assert np.concatenate(answers.kl).max() < 1e-6
    assert reference.num_passes == 1


def test_a_broken_layer_shows_and_does_not_change_what_the_reference_answers(
    decoder: Callable[[str], Exported], tmp_path: Path
) -> None:
    exported = decoder("fp32")
    config, model = exported.model.config, exported.model
    prompts, video = some_prompts(config), some_video(config)
    rules = rules_that_end_some(model, prompts, video)
    wanted = greedy_answers(model, prompts, video, rules)
    folder = write_parts(tmp_path / "bundle", config, model, exported.path)
    broken = ir.load(exported.path)
    weight = broken.graph.initializers["layers.1.down_proj.weight"]
    assert weight.const_value is not None
    weight.const_value = ir.Tensor(weight.const_value.numpy() * np.float32(8), name=weight.name)
    for file in (folder / "onnx").iterdir():
        file.unlink()
    ir.save(broken, folder / "onnx" / "decoder.onnx", external_data="decoder.data")

    reference = Reference(config, model.state_dict(), prompts, video, rules)
    chosen = runnable_backends(["onnxruntime"])["onnxruntime"]
    with closing(Graphs(folder, config, Precision.parse("fp32"), chosen, rules)) as graphs:
        first = compare_answers(graphs, reference, prompts, video)
        passes = reference.num_passes
        second = compare_answers(graphs, reference, prompts, video)
        graphs.make_room(2**62)  # closes the decoder, which the next draft opens again
        assert [draft.token_ids for draft in graphs.draft(prompts, video, [[] for _ in prompts])] == first.own
    assert [answer.token_ids for answer in reference.answers] == wanted
    num_tokens = sum(map(len, wanted))
    assert first.agreeing < 0.9 * num_tokens
    assert len(np.concatenate(first.kl)) == num_tokens
    assert np.concatenate(first.kl).mean() > 0.1
    assert first.own != wanted
    # What the reference answers is known by then.
    assert reference.num_passes == passes > 1
    assert (second.own, second.agreeing) == (first.own, first.agreeing)
    assert np.array_equal(np.concatenate(second.kl), np.concatenate(first.kl))
