"""The decoder graph on real ONNX Runtime, compared with the transformers library's Phi-3 without a cache."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from export_models import WINDOWED, Exported, SharedBuffers, embeddings, small_config, uncached_logits

from blip3v.export.decoder_graph import DecoderGraph, OnnxRuntimeAttention, ReferenceAttention
from blip3v.model.weights import random_model

Decoders = Callable[[str], Exported]

# Sums of a few hundred products in a different order.
FP32_ATOL = 2e-5
# Two layers of half-precision rounding, on logits of size about 1.
FP16_ATOL = 1e-2


@pytest.mark.parametrize("kind", ["fp32", "fp16", "windowed"])
@pytest.mark.parametrize(("rows", "length", "capacity"), [(1, 1, 1), (3, 4, 9), (2, 17, 32)], ids=str)
def test_prefill_at_sizes_other_than_the_examples(
    decoder: Decoders, kind: str, rows: int, length: int, capacity: int
) -> None:
    exported = decoder(kind)
    text = exported.model.config.text
    embeds_BtD = embeddings(text, rows, length)
    half = kind == "fp16"
    run = SharedBuffers(exported.session(), text, rows, capacity, "float16" if half else "float32")
    got = run(embeds_BtD, [length] * rows, [length - 1] * rows)
    expected = np.stack([uncached_logits(exported.model, row)[-1] for row in embeds_BtD])
    np.testing.assert_allclose(got, expected, atol=FP16_ATOL if half else FP32_ATOL, rtol=0)


@pytest.mark.parametrize("kind", ["fp32", "windowed"])
def test_cached_equals_uncached_for_every_split(decoder: Decoders, kind: str) -> None:
    exported = decoder(kind)
    text, length = exported.model.config.text, 13
    embeds_LD = embeddings(text, length)
    expected_LV = uncached_logits(exported.model, embeds_LD)
    session = exported.session()
    for split in range(1, length):
        run = SharedBuffers(session, text, 1, 16)
        got = run(embeds_LD[None, :split], [split], [split - 1])
        np.testing.assert_allclose(got[0], expected_LV[split - 1], atol=FP32_ATOL, err_msg=f"prefill of {split}")
        chunk = run(embeds_LD[None, split:], [length], [length - split - 1])
        np.testing.assert_allclose(chunk[0], expected_LV[-1], atol=FP32_ATOL, err_msg=f"chunk after {split}")
        # Again from the split on, one token per call, overwriting the chunk's entries in the cache.
        for position in range(split, length):
            step = run(embeds_LD[None, position : position + 1], [position + 1], [0])
            np.testing.assert_allclose(step[0], expected_LV[position], atol=FP32_ATOL, err_msg=f"step {position}")


def test_ragged_rows_equal_each_row_alone(decoder: Decoders) -> None:
    exported = decoder("fp32")
    text, lengths = exported.model.config.text, [6, 2, 4]
    embeds_BtD = embeddings(text, 3, 7)
    run = SharedBuffers(exported.session(), text, 3, 12)
    prefill = run(embeds_BtD[:, :6], lengths, [length - 1 for length in lengths])
    step = run(embeds_BtD[:, 6:], [length + 1 for length in lengths], [0, 0, 0])
    for row, length in enumerate(lengths):
        alone_LD = np.concatenate((embeds_BtD[row, :length], embeds_BtD[row, 6:]))
        expected_LV = uncached_logits(exported.model, alone_LD)
        np.testing.assert_allclose(prefill[row], expected_LV[-2], atol=FP32_ATOL)
        np.testing.assert_allclose(step[row], expected_LV[-1], atol=FP32_ATOL)


def test_logits_index_chooses_the_position(decoder: Decoders) -> None:
    exported = decoder("fp32")
    text = exported.model.config.text
    embeds_LD = embeddings(text, 5)
    expected_LV = uncached_logits(exported.model, embeds_LD)
    for index in range(5):
        got = SharedBuffers(exported.session(), text, 1, 5)(embeds_LD[None], [5], [index])
        np.testing.assert_allclose(got[0], expected_LV[index], atol=FP32_ATOL)


@pytest.mark.parametrize("kind", ["fp32", "windowed"])
def test_several_positions_of_each_row_at_once(decoder: Decoders, kind: str) -> None:
    exported = decoder(kind)
    text = exported.model.config.text
    embeds_BtD = embeddings(text, 2, 6)
    chosen = [[5, 0, 2], [3, 3, 4]]
    got = SharedBuffers(exported.session(), text, 2, 6).several(embeds_BtD, [6, 6], chosen)
    for row, at in enumerate(chosen):
        np.testing.assert_allclose(got[row], uncached_logits(exported.model, embeds_BtD[row])[at], atol=FP32_ATOL)


def test_the_cache_is_written_in_place_and_only_where_tokens_are(decoder: Decoders) -> None:
    exported = decoder("fp32")
    text = exported.model.config.text
    run = SharedBuffers(exported.session(), text, 1, 8)
    run(embeddings(text, 1, 3), [3], [2])
    for name, cache in run.caches.items():
        assert np.abs(cache[:, :, :3]).max() > 0, name
        assert not cache[:, :, 3:].any(), name


def test_the_sliding_window_is_the_libraries_own(decoder: Decoders) -> None:
    """A window of 8 changes the logits of a longer prompt, just as in transformers' Phi-3 with sliding_window=8."""
    windowed = decoder("windowed").model
    assert windowed.config.text.sliding_window == 8
    embeds_LD = embeddings(windowed.config.text, 17)
    open_model = random_model(small_config(num_kv_heads=WINDOWED["num_kv_heads"]))
    inside, beyond = (
        np.abs(uncached_logits(windowed, embeds_LD) - uncached_logits(open_model, embeds_LD))[part].max()
        for part in (slice(0, 8), slice(8, None))
    )
    assert inside < 1e-6
    assert beyond > 1e-3


@pytest.mark.parametrize("text", [{}, WINDOWED], ids=["full", "windowed"])
def test_the_reference_attention_equals_the_librarys(text: dict[str, int]) -> None:
    """The object that stands in for the kernel in PyTorch equals the library's attention, ragged and chunked."""
    model = random_model(small_config(**text))
    config = model.config.text
    graph = DecoderGraph(model.lang_model, config, ReferenceAttention(config)).eval()
    embeds_BtD = embeddings(config, 2, 12)
    lengths = [11, 7]
    cache = [torch.zeros(2, config.num_kv_heads, 16, config.head_dim) for _ in range(2 * config.num_layers)]

    def call(part_BtD: np.ndarray, counts: list[int], index: list[int], cache: list[torch.Tensor]) -> tuple:
        seqlens = torch.tensor(counts, dtype=torch.int32) - 1
        total = torch.tensor(max(counts), dtype=torch.int32)
        with torch.inference_mode():
            logits_B1V, *cache = graph(torch.from_numpy(part_BtD), torch.tensor(index)[:, None], seqlens, total, cache)
            return logits_B1V[:, 0], *cache

    prefill, *cache = call(embeds_BtD[:, :11], lengths, [10, 6], cache)
    step, *cache = call(embeds_BtD[:, 11:], [12, 8], [0, 0], cache)
    for row, length in enumerate(lengths):
        alone_LD = np.concatenate((embeds_BtD[row, :length], embeds_BtD[row, 11:]))
        expected_LV = uncached_logits(model, alone_LD)
        np.testing.assert_allclose(prefill[row], expected_LV[-2], atol=FP32_ATOL)
        np.testing.assert_allclose(step[row], expected_LV[-1], atol=FP32_ATOL)


def test_the_symbolic_attention_cannot_pass_for_a_reference() -> None:
    """Run in PyTorch it returns zeros, so a parity check that used it by mistake would fail at once."""
    model = random_model(small_config())
    config = model.config.text
    graph = DecoderGraph(model.lang_model, config, OnnxRuntimeAttention(config)).eval()
    cache = [torch.ones(1, config.num_kv_heads, 4, config.head_dim) for _ in range(2 * config.num_layers)]
    with torch.inference_mode():
        _, *present = graph(
            torch.from_numpy(embeddings(config, 1, 2)),
            torch.tensor([[1]]),
            torch.tensor([1], dtype=torch.int32),
            torch.tensor(2, dtype=torch.int32),
            cache,
        )
    assert all(not tensor.any() for tensor in present)
