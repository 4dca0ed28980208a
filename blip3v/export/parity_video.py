"""Compares the video encoder's graph with the fp32 PyTorch reference, stage by stage on one clip.

The graph runs first and is closed; only then are the reference's weights read.
"""

# Shapes: B batch, F frames, M video tokens, D width.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bundle.graph_io import GraphIO, video_encoder_io
from blip3v.bundle.precision import GraphPrecision
from blip3v.bundle.targets import DEFAULT_TARGET, Target, is_tensorrt
from blip3v.config import ModelConfig
from blip3v.export.activations import video_encoder_ranges
from blip3v.export.parity import PARITY_BACKEND, Comparison, compare
from blip3v.export.to_onnx import STAGE_PREFIX
from blip3v.export.video_encoder_graph import VideoEncoderGraph, stages_of
from blip3v.model.weights import empty_model, fill
from blip3v.runtime.backends import GraphFile, get_backend
from blip3v.runtime.cancellation import Deadline
from blip3v.units import format_count

__all__ = ["VideoCheck", "check_video_encoder"]

FloatArray = NDArray[np.float32]
_ODD_FRAMES = 5  # another number than any config has


@dataclass(frozen=True)
class VideoCheck:
    """The video encoder's results for the clip, and the reference's."""

    comparisons: tuple[Comparison, ...]
    got_MD: NDArray[np.floating]
    expected_MD: FloatArray
    ranges: dict[str, float]  # largest activation of each layer; empty if its dtype cannot overflow


def check_video_encoder(
    path: Path,
    config: ModelConfig,
    weights: Mapping[str, Tensor],
    pixels_FCHW: FloatArray,
    precision: GraphPrecision,
    *,
    target: Target = DEFAULT_TARGET,
    backend: str = PARITY_BACKEND,
) -> VideoCheck:
    """Compares each stage on the clip, and the video tokens at other sizes.

    Args:
        path: the graph.
        config: the model's.
        weights: the reference's, by released name.
        pixels_FCHW: a clip with the config's number of frames, in [-1, 1].
        precision: the graph's.
        target: the form of the graph.
        backend: the back end that runs the graph.
    """
    clip_BFCHW = pixels_FCHW[None]
    # Two clips, one of them reversed: the batch axis must be free in the graph, and that of the frames unless the
    # target fixes it.
    num_frames = len(pixels_FCHW) if is_tensorrt(target) else _ODD_FRAMES
    odd_BFCHW = np.stack([_frames(pixels_FCHW, num_frames), _frames(pixels_FCHW[::-1], num_frames)])
    io, names = video_encoder_io(config, target), [f"{STAGE_PREFIX}{stage}" for stage in stages_of(config)]
    got, got_odd = _run_graph(path, io, names, (clip_BFCHW, odd_BFCHW), precision, backend)
    model = empty_model(config)
    for name in ("vision_encoder", "vision_tokenizer"):
        fill(model.get_submodule(name), weights, f"{name}.")
    reference = VideoEncoderGraph(model, scan=False)
    with torch.inference_mode():
        expected, expected_odd = ([x.numpy() for x in reference(torch.from_numpy(x))] for x in (clip_BFCHW, odd_BFCHW))
    case = f"1 clip, {format_count(len(pixels_FCHW), 'frame')}"
    stages = [*enumerate(stages_of(config), start=1), (0, "video_tokens")]
    rows = [compare(stage, case, got[k], expected[k], precision.tolerance) for k, stage in stages]
    case = f"2 clips, {format_count(num_frames, 'frame')}"
    rows.append(compare("video_tokens", case, got_odd[0], expected_odd[0], precision.tolerance))
    ranges = video_encoder_ranges(model, pixels_FCHW, precision) if precision.activation_limit is not None else {}
    return VideoCheck(tuple(rows), got[0][0], expected[0][0], ranges)


def _run_graph(
    path: Path,
    io: GraphIO,
    names: Sequence[str],
    clips: tuple[FloatArray, ...],
    precision: GraphPrecision,
    backend: str,
) -> list[list[NDArray[np.floating]]]:
    """Returns the video tokens of each clip, and the values ``names`` in the graph."""
    with _copy_with_outputs(path, names) as copy:
        graph = GraphFile(
            path=copy,
            io=io,
            precision=precision,
            weights_bytes=path.with_suffix(".data").stat().st_size,
            extra_outputs=tuple(names),
        )
        encoder = get_backend(backend).open_video_encoder(graph)
        found = [encoder.run(clip, Deadline()) for clip in clips]
        encoder.close()
    return [[outputs[name] for name in ("video_tokens", *names)] for outputs in found]


@contextmanager
def _copy_with_outputs(path: Path, names: Sequence[str]) -> Iterator[Path]:
    """Writes a copy beside the graph, on the same weights, that also outputs the values ``names``."""
    model = onnx.load(path, load_external_data=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    copy = path.with_name(f"{path.stem}.parity.onnx")
    try:
        copy.write_bytes(model.SerializeToString())
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def _frames(pixels_FCHW: FloatArray, count: int) -> FloatArray:
    return pixels_FCHW[np.arange(count) % len(pixels_FCHW)]
