"""Compares the decoder's graph with the fp32 PyTorch reference: prefill, cached steps, and a ragged batch.

The graph runs as in the runtime, in a back end's session with its KV cache, fed with the video encoder graph's tokens
and with the tokens that it chooses itself. Then it is closed, and the reference computes every position in one pass
without a cache: if both choose the same token at every position, they would have generated the same answer.
"""

# Shapes: M video tokens, L prompt tokens, N steps, D width, V logits.

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bundle.graph_io import decoder_io
from blip3v.bundle.precision import GraphPrecision, Tolerance
from blip3v.bundle.targets import DEFAULT_TARGET, Target
from blip3v.config import ModelConfig
from blip3v.export.activations import decoder_ranges
from blip3v.export.parity import PARITY_BACKEND, Comparison, TokenCheck, compare, count_tokens
from blip3v.export.parity_video import VideoCheck
from blip3v.model.language import embedding_table
from blip3v.model.layerwise import layerwise_logits
from blip3v.runtime.backends import Decoder, GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline
from blip3v.text.prompt import Prompt, splice

__all__ = ["NUM_STEPS", "DecoderCheck", "check_decoder"]

NUM_STEPS = 16  # tokens fed back
_RAGGED = (11, 5)  # lengths of the two prompts of the batched case

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class DecoderCheck:
    """The decoder's results."""

    comparisons: tuple[Comparison, ...]
    tokens: TokenCheck
    token_ids: tuple[int, ...]  # what the graph generated after the prompt
    ranges: dict[str, float]  # largest activation of each layer; empty if its dtype cannot overflow


@dataclass(frozen=True)
class _GraphRun:
    """The graph's outputs."""

    logits_NV: list[FloatArray]  # after the prompt and after each step
    token_ids: list[int]
    ragged_2V: list[FloatArray]  # after the prefill of both prompts, and after one step


def check_decoder(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    prompt: Prompt,
    video: VideoCheck,
    precision: GraphPrecision,
    tolerance: Tolerance,
    progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    target: Target = DEFAULT_TARGET,
    backend: str = PARITY_BACKEND,
) -> DecoderCheck:
    """Compares prefill and ``NUM_STEPS`` steps after the prompt, and a ragged batch.

    Args:
        path: the graph.
        config: the model's.
        weights: the reference's, by released name.
        prompt: the question's ids.
        video: the clip's video tokens from graph and reference.
        precision: the graph's.
        tolerance: for the logits, which depend on the video encoder's tokens too.
        progress: called with (layers of the reference done, total layers).
        target: the form of the graph.
        backend: the back end that runs the graph.
    """
    table_VD: FloatArray = embedding_table(weights, config.text).numpy()
    ragged = [table_VD[np.resize(prompt.ids, length)] for length in _RAGGED]
    next_2D = table_VD[list(prompt.ids[:2])]
    graph = GraphFile(
        path=path,
        io=decoder_io(config, target),
        precision=precision,
        weights_bytes=path.with_suffix(".data").stat().st_size,
    )
    decoder = get_backend(backend).open_decoder(graph, config.text)
    got = _run_graph(decoder, table_VD, _spliced(table_VD, prompt, video.got_MD), ragged, next_2D)
    decoder.close()
    del decoder  # the reference needs its memory

    answer_ND = table_VD[got.token_ids]
    prompt_LD = _spliced(table_VD, prompt, video.expected_MD)
    whole_LD = np.concatenate((prompt_LD, answer_ND))
    longer = [np.concatenate((part, row[None])) for part, row in zip(ragged, next_2D, strict=True)]
    at = [range(len(prompt_LD) - 1, len(whole_LD)), *((length - 1, length) for length in _RAGGED)]
    expected = layerwise_logits(config.text, weights, [whole_LD, *longer], at, progress)

    case = f"1 prompt, {len(prompt_LD)} tokens"
    stages = ["prefill", *(f"step {i}" for i in range(1, NUM_STEPS + 1))]
    steps = zip(stages, got.logits_NV, expected[0], strict=True)
    rows = [compare(stage, case, ours, theirs, tolerance) for stage, ours, theirs in steps]
    case = f"2 prompts, {' and '.join(map(str, _RAGGED))} tokens"
    for index, stage in enumerate(("prefill", "step 1")):
        theirs_2V = np.stack([logits_NV[index] for logits_NV in expected[1:]])
        rows.append(compare(stage, case, got.ragged_2V[index], theirs_2V, tolerance))
    tokens = count_tokens(got.logits_NV, list(expected[0]), tolerance)
    ranges = decoder_ranges(config.text, weights, whole_LD, precision) if precision.activation_limit is not None else {}
    return DecoderCheck(tuple(rows), tokens, tuple(got.token_ids), ranges)


def _spliced(table_VD: FloatArray, prompt: Prompt, video_MD: NDArray[np.floating]) -> NDArray[np.floating]:
    return splice(table_VD[list(prompt.ids)], prompt.image_position, video_MD)


def _run_graph(
    decoder: Decoder,
    table_VD: FloatArray,
    prompt_LD: NDArray[np.floating],
    ragged: list[FloatArray],
    next_2D: FloatArray,
) -> _GraphRun:
    """Decodes greedily after one prompt, then runs a ragged batch of two."""
    dtype, deadline = decoder.dtype, Deadline()
    with closing(decoder.session(1, len(prompt_LD) + NUM_STEPS)) as session:
        logits, token_ids = [session.prefill([prompt_LD.astype(dtype)], deadline)[0]], []
        for _ in range(NUM_STEPS):
            token_ids.append(int(logits[-1].argmax()))
            logits.append(session.step(table_VD[token_ids[-1:]].astype(dtype))[0])
    with closing(decoder.session(2, max(_RAGGED) + 1)) as session:
        ragged_2V = [
            session.prefill([part.astype(dtype) for part in ragged], deadline),
            session.step(next_2D.astype(dtype)),
        ]
    return _GraphRun(logits, token_ids, ragged_2V)
