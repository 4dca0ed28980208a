"""The video encoder's graph beside the fp32 PyTorch reference, stage by stage on one clip.

The graph runs first and is let go; only then are the reference's weights read.
"""

# Shapes: B batch, F frames, M video tokens, D width.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor

from blip3v.bundle.precision import GraphPrecision
from blip3v.config import ModelConfig
from blip3v.export.activations import video_encoder_ranges
from blip3v.export.parity import Comparison, compare
from blip3v.export.to_onnx import STAGE_PREFIX
from blip3v.export.video_encoder_graph import STAGES, VideoEncoderGraph
from blip3v.model.weights import empty_model, fill
from blip3v.runtime.ort import load_onnxruntime, ort_errors

__all__ = ["VideoCheck", "check_video_encoder"]

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class VideoCheck:
    """What the video encoder gave for the clip, beside the reference's."""

    comparisons: tuple[Comparison, ...]
    got_MD: NDArray[np.floating]
    expected_MD: FloatArray
    ranges: dict[str, float]  # largest activation of each layer; empty where its dtype holds any


def check_video_encoder(
    path: Path, config: ModelConfig, weights: Mapping[str, Tensor], pixels_FCHW: FloatArray, precision: GraphPrecision
) -> VideoCheck:
    """Compares each stage on the clip, and the video tokens at other sizes.

    Args:
        path: the graph.
        config: the model's.
        weights: of the reference, by released name.
        pixels_FCHW: a clip of the config's number of frames, in [-1, 1].
        precision: the graph's.
    """
    clip_BFCHW = pixels_FCHW[None]
    # The same frames backwards and a clip of another length: batch and frames must be free in the graph.
    odd_BFCHW = np.stack([_frames(pixels_FCHW, 5), _frames(pixels_FCHW[::-1], 5)])
    got, got_odd = _graph_run(path, (clip_BFCHW, odd_BFCHW), precision)
    model = empty_model(config)
    for name in ("vision_encoder", "vision_tokenizer"):
        fill(model.get_submodule(name), weights, f"{name}.")
    reference = VideoEncoderGraph(model, scan=False)
    with torch.inference_mode():
        expected, expected_odd = ([x.numpy() for x in reference(torch.from_numpy(x))] for x in (clip_BFCHW, odd_BFCHW))
    case = f"1 clip, {len(pixels_FCHW)} frames"
    stages = zip((*STAGES, "video_tokens"), (1, 2, 3, 0), strict=True)
    rows = [compare(stage, case, got[k], expected[k], precision.tolerance) for stage, k in stages]
    rows.append(compare("video_tokens", "2 clips, 5 frames", got_odd[0], expected_odd[0], precision.tolerance))
    ranges = video_encoder_ranges(model, pixels_FCHW, precision) if precision.activation_limit is not None else {}
    return VideoCheck(tuple(rows), got[0][0], expected[0][0], ranges)


def _graph_run(
    path: Path, clips: tuple[FloatArray, ...], precision: GraphPrecision
) -> list[list[NDArray[np.floating]]]:
    """Video tokens and stages of each clip."""
    session = _session_with_stages(path)
    names = ["video_tokens", *(f"{STAGE_PREFIX}{stage}" for stage in STAGES)]
    with ort_errors("running the video encoder"):
        return [session.run(names, {"frames": clip.astype(precision.io)}) for clip in clips]


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


def _frames(pixels_FCHW: FloatArray, count: int) -> FloatArray:
    return pixels_FCHW[np.arange(count) % len(pixels_FCHW)]
