"""An int8 KV cache in an exported decoder: where its scales come from, what they cost, and what is refused."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from export_models import embeddings, small_config, uncached_logits
from toy_parts import cpu_backends

from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.precision import Precision
from blip3v.calibration.statistics import cache_names
from blip3v.config import TextConfig
from blip3v.errors import UsageError
from blip3v.export.cache_scales import cache_scales, prompt_cache_scales
from blip3v.export.decoder_graph import CacheScales, DecoderGraph, ReferenceAttention
from blip3v.export.pipeline import export_bundle
from blip3v.export.source import random_source
from blip3v.export.to_onnx import decoder_to_onnx, save_graph
from blip3v.model import Blip3Video
from blip3v.model.weights import random_model
from blip3v.runtime.backends import Decoder, GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline

TEXT = small_config().text
_GK = TEXT.num_kv_heads * TEXT.head_dim
_HALF = TEXT.head_dim // 2
Opener = Callable[[str, str], tuple[Decoder, GraphFile]]


@pytest.fixture(scope="module")
def model() -> Blip3Video:
    return random_model(small_config())


@pytest.fixture(scope="module")
def scales(model: Blip3Video) -> CacheScales:
    return prompt_cache_scales(TEXT, model.state_dict(), embeddings(TEXT, 30, seed=3))


@pytest.fixture(scope="module")
def open_decoder(model: Blip3Video, scales: CacheScales, tmp_path_factory: pytest.TempPathFactory) -> Opener:
    """Opens the decoder in (precision, back end); each precision is exported once."""
    folder = tmp_path_factory.mktemp("int8-cache")

    @functools.cache
    def exported(precision: str) -> GraphFile:
        spec = Precision.parse(precision).decoder
        path = folder / precision / "decoder.onnx"
        graph = decoder_to_onnx(model.config, model.state_dict(), spec, cache_scales=scales)
        save_graph(graph, path)
        size = path.with_suffix(".data").stat().st_size
        return GraphFile(path=path, io=decoder_io(model.config), precision=spec, weights_bytes=size)

    def opened(precision: str, backend: str) -> tuple[Decoder, GraphFile]:
        graph = exported(precision)
        return get_backend(backend).open_decoder(graph, TEXT, threads=1, chunk=8), graph

    return opened


def test_scales_of_a_prompt_leave_three_times_the_room_that_it_needs(model: Blip3Video, scales: CacheScales) -> None:
    """The keys and values are those in the transformers library's own cache."""
    phi3: Any = model.lang_model.model
    with torch.inference_mode():
        found = phi3(inputs_embeds=torch.from_numpy(embeddings(TEXT, 30, seed=3))[None], use_cache=True)
    for layer, cache in enumerate(found.past_key_values.layers):
        largest_GK, values_GK = (x[0].abs().amax(1) for x in (cache.keys, cache.values))
        pairs_Gk = torch.maximum(largest_GK[:, :_HALF], largest_GK[:, _HALF:])
        torch.testing.assert_close(127 * scales.values_LGK[layer], 3 * values_GK)
        for half in scales.keys_LGK[layer].split(_HALF, dim=1):
            torch.testing.assert_close(127 * half, 3 * pairs_Gk)


def test_calibrated_scales_leave_half_as_much_room_again() -> None:
    keys_K, values_K = torch.arange(1.0, _GK + 1), torch.arange(2.0, _GK + 2)
    values_K[5] = 0.0
    seen = {name: (i // 2 + 1) * (values_K if i % 2 else keys_K) for i, name in enumerate(cache_names(TEXT))}
    found = cache_scales(seen.__getitem__, TEXT)
    assert found.keys_LGK.shape == found.values_LGK.shape == (TEXT.num_layers, TEXT.num_kv_heads, TEXT.head_dim)
    heads_GK = keys_K.reshape(TEXT.num_kv_heads, TEXT.head_dim)
    for layer in range(TEXT.num_layers):
        # The second of the two channels that the rotation mixes is the larger here.
        torch.testing.assert_close(127 * found.keys_LGK[layer, :, :_HALF], 1.5 * (layer + 1) * heads_GK[:, _HALF:])
        assert torch.equal(found.keys_LGK[layer, :, :_HALF], found.keys_LGK[layer, :, _HALF:])
        assert found.values_LGK[layer].flatten()[5] == 1  # never seen but zero
        assert found.values_LGK[layer].flatten()[6] == pytest.approx(1.5 * (layer + 1) * 8 / 127)


def test_the_graph_holds_the_scales_of_every_layer_in_fp32(open_decoder: Opener, scales: CacheScales) -> None:
    _, graph = open_decoder("fp16+kv-int8", "onnxruntime")
    model = ir.load(graph.path)
    nodes = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert len(nodes) == TEXT.num_layers
    for layer, node in enumerate(nodes):
        for value, expected in zip(node.inputs[12:14], scales.layer(layer), strict=True):
            assert value is not None
            assert value.const_value is not None
            assert np.array_equal(value.const_value.numpy(), expected.numpy())
        assert node.attributes["k_quant_type"].value == node.attributes["v_quant_type"].value == "PER_CHANNEL"
    assert {port.dtype for port in model.graph.inputs if str(port.name).startswith("past")} == {ir.DataType.INT8}


@pytest.mark.parametrize("backend", cpu_backends())
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32+kv-int8", 2e-3), ("fp16+kv-int8", 1e-2)])
def test_an_engine_rounds_keys_and_values_as_the_reference_does(
    open_decoder: Opener, model: Blip3Video, scales: CacheScales, precision: str, tolerance: float, backend: str
) -> None:
    decoder, _ = open_decoder(precision, backend)
    embeds_LD = embeddings(TEXT, 24, seed=5)
    session = decoder.session(1, 24)
    found = [session.prefill([embeds_LD[:11].astype(decoder.dtype)], Deadline())[0]]
    found += [session.step(embeds_LD[i : i + 1].astype(decoder.dtype))[0] for i in range(11, 24)]
    session.close()
    rounded_LV = _reference(model, scales, embeds_LD, TEXT)[10:]
    exact_LV = uncached_logits(model, embeds_LD)[10:]
    largest = np.abs(exact_LV).max()
    assert np.abs(np.stack(found) - rounded_LV).max() < tolerance * largest
    assert 1e-4 * largest < np.abs(np.stack(found) - exact_LV).max() < 4e-2 * largest


def _reference(model: Blip3Video, scales: CacheScales, embeds_LD: np.ndarray, text: TextConfig) -> np.ndarray:
    """Logits (L,V) of the graph's module in PyTorch, a token at a time."""
    graph = DecoderGraph(model.lang_model, text, ReferenceAttention(text), scales)
    shape = (1, text.num_kv_heads, len(embeds_LD), text.head_dim)
    cache = [torch.zeros(shape, dtype=torch.int8) for _ in range(2 * text.num_layers)]
    logits = []
    with torch.inference_mode():
        for index, row_D in enumerate(torch.from_numpy(embeds_LD)):
            length = torch.tensor(index + 1, dtype=torch.int32)
            at_start = torch.zeros(1, 1, dtype=torch.int64)
            logits_11V, *cache = graph(row_D[None, None], at_start, length[None] - 1, length, cache)
            logits.append(logits_11V[0, 0].numpy())
    return np.stack(logits)


@pytest.mark.parametrize(
    ("precision", "options", "message"),
    [
        ("fp16+kv-int8", {"check": False}, r"fp16\+kv-int8 needs the scales of its cache"),
        ("fp16", {"cache_scales": CacheScales(torch.ones(1), torch.ones(1))}, "the cache of fp16 is float16"),
    ],
    ids=["nothing-to-calibrate-on", "a-cache-without-scales"],
)
def test_scales_that_are_missing_or_useless_are_refused_before_the_work(
    tmp_path: Path, precision: str, options: dict[str, Any], message: str
) -> None:
    source = random_source(small_config())
    with pytest.raises(UsageError, match=message):
        export_bundle(source, tmp_path / "bundle", precision=Precision.parse(precision), **options)
    assert not (tmp_path / "bundle").exists()
