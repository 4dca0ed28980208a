"""Runs the two graphs beside the fp32 PyTorch reference on one clip and one question, and measures each stage.

The decoder runs as the runtime runs it (``runtime/decoder.py``: shared cache, chunks), fed with the video graph's own
tokens; the reference starts from its own and computes every step anew, without a cache. One component at a time.
"""

# Shapes: B batch, F frames, M video tokens, L prompt tokens, D width, V logits.

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.manifest import DTYPES, Precision
from blip3v.config import ModelConfig
from blip3v.export.parity import Comparison, TokenCheck, compare, count_tokens
from blip3v.export.to_onnx import STAGE_PREFIX
from blip3v.export.video_encoder_graph import STAGES, VideoEncoderGraph
from blip3v.model.blip3_video import Blip3Video
from blip3v.model.language import LanguageModel
from blip3v.runtime.decoder import Decoder
from blip3v.runtime.ort import load_onnxruntime, open_graph, ort_errors
from blip3v.text.prompt import Prompt, splice

__all__ = ["NUM_STEPS", "DecoderCheck", "VideoCheck", "check_decoder", "check_video_encoder", "embedding_table"]

NUM_STEPS = 16  # tokens fed back from the reference
_RAGGED = (11, 5)  # lengths of the two prompts of the batched case

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class VideoCheck:
    """What the video encoder gave for the clip, beside the reference's."""

    comparisons: tuple[Comparison, ...]
    got_MD: NDArray[np.floating]
    expected_MD: FloatArray


@dataclass(frozen=True)
class DecoderCheck:
    """The decoder's numbers; ``reference_ids`` is the reference's greedy continuation."""

    comparisons: tuple[Comparison, ...]
    tokens: TokenCheck
    reference_ids: tuple[int, ...]


def check_video_encoder(path: Path, model: Blip3Video, pixels_FCHW: FloatArray, precision: Precision) -> VideoCheck:
    """Compares each stage on the clip, and the video tokens at other sizes.

    Args:
        path: the graph.
        model: the fp32 reference.
        pixels_FCHW: a clip of the config's number of frames, in [-1, 1].
        precision: the graph's.
    """
    session = _session_with_stages(path)
    reference = VideoEncoderGraph(model, scan=False)
    names = ["video_tokens", *(f"{STAGE_PREFIX}{stage}" for stage in STAGES)]
    clip_BFCHW = pixels_FCHW[None]
    got, expected = _both(session, reference, clip_BFCHW, names, precision)
    stages = [*STAGES, "video_tokens"]
    order = [1, 2, 3, 0]
    case = f"1 clip, {len(pixels_FCHW)} frames"
    rows = [compare(stages[i], case, got[k], expected[k], precision) for i, k in enumerate(order)]
    # The same frames backwards and a clip of another length: batch and frames must be free in the graph.
    odd_BFCHW = np.stack([_frames(clip_BFCHW[0], 5), _frames(clip_BFCHW[0, ::-1], 5)])
    got_odd, expected_odd = _both(session, reference, odd_BFCHW, names[:1], precision)
    rows.append(compare("video_tokens", "2 clips, 5 frames", got_odd[0], expected_odd[0], precision))
    return VideoCheck(tuple(rows), got[0][0], expected[0][0])


def check_decoder(
    path: Path,
    language: LanguageModel,
    config: ModelConfig,
    prompt: Prompt,
    video: VideoCheck,
    precision: Precision,
) -> DecoderCheck:
    """Compares prefill and ``NUM_STEPS`` steps after the prompt, and a ragged batch.

    Args:
        path: the graph.
        language: the fp32 reference.
        config: the model's.
        prompt: the question's ids.
        video: the clip's video tokens of graph and reference.
        precision: the graph's.
    """
    graph = open_graph(path, decoder_io(config), threads=None, weight_bytes=_weight_bytes(path))
    decoder = Decoder(graph, config.text)
    table_VD = embedding_table(language)
    expected_NV, ids = _reference_run(language, splice(table_VD[prompt.ids], prompt.image_position, video.expected_MD))
    got_NV = _graph_run(decoder, splice(table_VD[prompt.ids], prompt.image_position, video.got_MD), table_VD[ids])
    case = f"1 prompt, {prompt.length(len(video.got_MD))} tokens"
    stages = ["prefill", *(f"step {i}" for i in range(1, NUM_STEPS + 1))]
    rows = [
        compare(stage, case, got, expected, precision)
        for stage, got, expected in zip(stages, got_NV, expected_NV, strict=True)
    ]
    rows += _ragged(decoder, language, table_VD, np.array(prompt.ids), precision)
    return DecoderCheck(tuple(rows), count_tokens(got_NV, expected_NV, precision), tuple(ids))


def embedding_table(language: LanguageModel) -> FloatArray:
    """The rows that ids really use, (V, D) fp32."""
    phi3: Any = language.model  # the transformers library, untyped
    table_VD: FloatArray = phi3.embed_tokens.table().numpy()
    return table_VD


def _session_with_stages(path: Path) -> Any:
    """A session of a copy of the graph, in memory, that gives the stages out too; the file stays as it is."""
    copy = onnx.load(path, load_external_data=False)
    for stage in STAGES:
        copy.graph.output.append(onnx.ValueInfoProto(name=f"{STAGE_PREFIX}{stage}"))
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
    with ort_errors("opening the video encoder"):
        return onnxruntime.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _both(
    session: Any, reference: VideoEncoderGraph, frames_BFCHW: FloatArray, names: list[str], precision: Precision
) -> tuple[list[NDArray[np.floating]], list[FloatArray]]:
    with ort_errors("running the video encoder"):
        got = session.run(names, {"frames": frames_BFCHW.astype(DTYPES[precision])})
    with torch.inference_mode():
        expected = reference(torch.from_numpy(frames_BFCHW))
    return got, [value.numpy() for value in expected[: len(names)]]


def _frames(pixels_FCHW: FloatArray, count: int) -> FloatArray:
    return pixels_FCHW[np.arange(count) % len(pixels_FCHW)]


def _reference_run(language: LanguageModel, embeds_LD: NDArray[np.floating]) -> tuple[list[FloatArray], list[int]]:
    """Greedy: logits (V,) after the prompt and after each of ``NUM_STEPS`` tokens, and these tokens."""
    x_1LD = torch.from_numpy(embeds_LD.astype(np.float32))[None]
    logits, ids = [_last_logits(language, x_1LD)], []
    for _ in range(NUM_STEPS):
        ids.append(int(logits[-1].argmax()))
        x_1LD = torch.cat((x_1LD, language.embed(torch.tensor([[ids[-1]]]))), dim=1)
        logits.append(_last_logits(language, x_1LD))
    return logits, ids


def _last_logits(language: LanguageModel, x_1LD: Tensor) -> FloatArray:
    with torch.inference_mode():
        logits_V: FloatArray = language.lm_head(language.hidden(x_1LD)[0, -1]).numpy()
    return logits_V


def _graph_run(decoder: Decoder, embeds_LD: NDArray[np.floating], fed_ND: FloatArray) -> list[FloatArray]:
    cache = decoder.take_cache(1, len(embeds_LD) + len(fed_ND))
    logits = [decoder.prefill(cache, [embeds_LD.astype(decoder.dtype)])[0]]
    logits += [decoder.step(cache, row_D[None].astype(decoder.dtype))[0] for row_D in fed_ND]
    return logits


def _ragged(
    decoder: Decoder, language: LanguageModel, table_VD: FloatArray, ids_L: NDArray[np.int64], precision: Precision
) -> list[Comparison]:
    """Two prompts of different lengths in one padded call, then one step for both."""
    parts = [table_VD[np.resize(ids_L, length)] for length in _RAGGED]
    cache = decoder.take_cache(2, max(_RAGGED) + 1)
    next_BD = table_VD[ids_L[:2]].astype(decoder.dtype)
    got = [
        decoder.prefill(cache, [part.astype(decoder.dtype) for part in parts]),
        decoder.step(cache, next_BD),
    ]
    longer = [np.concatenate((part, table_VD[ids_L[row]][None])) for row, part in enumerate(parts)]
    case = f"2 prompts, {' and '.join(map(str, _RAGGED))} tokens"
    rows = []
    for stage, ours, inputs in (("prefill", got[0], parts), ("step 1", got[1], longer)):
        expected = np.stack([_last_logits(language, torch.from_numpy(part)[None]) for part in inputs])
        rows.append(compare(stage, case, ours, expected, precision))
    return rows


def _weight_bytes(path: Path) -> int:
    return path.with_suffix(".data").stat().st_size
