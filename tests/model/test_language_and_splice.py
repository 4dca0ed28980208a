"""The language model against the transformers library, the splice against plain lists, and the released names."""

from __future__ import annotations

from typing import cast

import pytest
import torch
import torch.nn.functional as F
from transformers import Phi3Config, Phi3ForCausalLM

from blip3v.config import ModelConfig, preset
from blip3v.model import IGNORE_INDEX, Blip3Video, splice
from blip3v.model.generate import greedy
from blip3v.model.language import SplitEmbedding
from blip3v.model.temporal import with_encoder


@pytest.fixture(scope="module")
def model() -> Blip3Video:
    torch.manual_seed(3)
    built = Blip3Video(preset("tiny"))
    with torch.no_grad():
        built.lang_model.lm_head.bias.normal_()
        built.lang_model.lm_head.weight.mul_(8)
    return built.eval()


def test_language_model_equals_the_library_with_one_table_and_a_bias_on_top(model: Blip3Video) -> None:
    text = model.config.text
    stock = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=text.num_logits,
            hidden_size=text.hidden_size,
            intermediate_size=text.intermediate_size,
            num_hidden_layers=text.num_layers,
            num_attention_heads=text.num_heads,
            num_key_value_heads=text.num_kv_heads,
            max_position_embeddings=text.max_context,
            original_max_position_embeddings=text.max_context,
            sliding_window=text.sliding_window,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
            tie_word_embeddings=False,
        )
    ).eval()
    language = model.lang_model
    weight, bias = language.lm_head.matrix()
    state = {k: v for k, v in language.state_dict().items() if k.startswith(("model.layers", "model.norm"))}
    table = cast(SplitEmbedding, language.model.embed_tokens).table()
    state |= {"model.embed_tokens.weight": table, "lm_head.weight": weight}
    stock.load_state_dict(state, strict=True)
    ids = torch.tensor([[1, 5, 300, 608, 610, 607], [2, 2, 9, 17, 609, 0]])
    torch.testing.assert_close(language(language.embed(ids)), stock(ids).logits + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", [(0, 0), (2, 4), (4, 1)], ids=str)
def test_splice_against_plain_concatenation(positions: tuple[int, int]) -> None:
    text, video = torch.randn(2, 5, 4), torch.randn(2, 3, 4)
    got = splice(text, torch.tensor(positions), video)
    for row, at in enumerate(positions):
        assert torch.equal(got[row], torch.cat((text[row, :at], video[row], text[row, at + 1 :])))


def test_loss_counts_only_answers(model: Blip3Video) -> None:
    ids = torch.tensor([[10, 608, 20, 30, 31], [10, 608, 20, 40, 600]])
    labels = torch.full_like(ids, IGNORE_INDEX)
    labels[0, 3:], labels[1, 3] = ids[0, 3:], 40
    video = torch.randn(2, 4, 128)
    position = torch.tensor([1, 1])
    loss, count = model.loss(ids, labels, position, video)
    logits = model(ids, position, video).log_softmax(-1)
    # <image> became 4 positions: text position p >= 2 is at p + 3, and is predicted one position before.
    want = -(logits[0, 5, 30] + logits[0, 6, 31] + logits[1, 5, 40])
    assert count == 3
    torch.testing.assert_close(loss, want)


def test_padding_on_the_right_changes_nothing(model: Blip3Video) -> None:
    short = torch.tensor([[10, 608, 20, 30]])
    long = F.pad(short, (0, 6), value=607)
    video, position = torch.randn(1, 4, 128), torch.tensor([1])
    got = model(long, position, video)[:, : 4 + 3]
    torch.testing.assert_close(got, model(short, position, video), rtol=1e-5, atol=1e-5)


def test_greedy_with_the_cache_equals_greedy_without(model: Blip3Video) -> None:
    ids, position = torch.tensor([[10, 608, 20, 30], [11, 608, 21, 33]]), torch.tensor([1, 1])
    video = torch.randn(2, 32, 128)
    got = greedy(model, ids, position, video, max_new_tokens=12, stop_id=None)
    for row in range(2):
        answer: list[int] = []
        for _ in range(12):
            whole = torch.cat((ids[row : row + 1], torch.tensor([answer], dtype=torch.long)), dim=1)
            logits = model(whole, position[row : row + 1], video[row : row + 1])
            answer.append(int(logits[0, -1].argmax()))
        assert got[row] == answer
    stop = got[0][3]
    stopped = greedy(model, ids, position, video, max_new_tokens=12, stop_id=stop)
    assert stopped[0] == got[0][: got[0].index(stop)]


def _released(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(x.shape) for name, x in Blip3Video(config).state_dict().items()}


def test_names_and_shapes_are_the_released_ones() -> None:
    """Spot checks of the published shapes; the tests of checkpoint reading check the whole list."""
    state = _released(preset("xgen-mm-vid"))
    assert state["vision_encoder.embeddings.patch_embedding.weight"] == (1152, 3, 14, 14)
    assert state["vision_encoder.encoder.layers.26.mlp.fc1.weight"] == (4304, 1152)
    assert state["vision_tokenizer.latents"] == (128, 1152)
    assert state["vision_tokenizer.layers.5.0.to_kv.weight"] == (3072, 1152)
    assert state["vision_tokenizer.layers.5.1.3.weight"] == (1152, 4608)
    assert state["vision_tokenizer.projection.weight"] == (3072, 1152)
    assert state["vision_tokenizer.temporal_encoder.initial_memory"] == (128, 4, 1152)
    assert state["vision_tokenizer.temporal_encoder.pos_emb.inv_freq"] == (576,)
    assert state["vision_tokenizer.temporal_encoder.ttm_unit.process_layers.3.1.1.weight"] == (4608, 1152)
    assert state["vision_tokenizer.temporal_encoder.ttm_unit.write_layer.mlp.1.weight"] == (8, 1152)
    assert state["lang_model.model.embed_tokens.weight"] == (32064, 3072)
    assert state["lang_model.model.embed_tokens.additional_embedding.weight"] == (3, 3072)
    assert state["lang_model.model.layers.31.self_attn.qkv_proj.weight"] == (9216, 3072)
    assert state["lang_model.model.layers.31.mlp.gate_up_proj.weight"] == (16384, 3072)
    assert state["lang_model.lm_head.bias"] == (32064,)
    assert state["lang_model.lm_head.additional_fc.weight"] == (3, 3072)


def test_the_released_size_has_the_published_number_of_parameters() -> None:
    """768 tensors, 4,418,604,771 elements, minus the pooling head and the unused read layer, which we do not build."""
    state = _released(preset("xgen-mm-vid"))
    pool_head, read_layer = (11, 15_238_352), (6, 332_288)
    assert len(state) == 768 - pool_head[0] - read_layer[0]
    elements = sum(int(torch.Size(shape).numel()) for shape in state.values())
    assert elements == 4_418_604_771 - pool_head[1] - read_layer[1]


def test_tokenlearner_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"):
        model = Blip3Video(with_encoder(preset("xgen-mm-vid"), "tokenlearner"))
    encoder = model.vision_tokenizer.temporal_encoder
    assert sum(x.numel() for x in encoder.parameters()) == 80_384
