"""What engines are asked for: the limits of their profiles and how they are built, checked without TensorRT."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from blip3v.bundle.engines import EngineLimits, HardwareCompatibility, Library
from blip3v.bundle.reader import Bundle
from blip3v.bundle.targets import DEFAULT_TARGET
from blip3v.errors import ConfigError, UsageError
from blip3v.runtime.backends import PREFILL_CHUNK
from blip3v.runtime.tensorrt_library import library_of

__all__ = ["DEFAULT_SEQ_LEN", "EngineRequest", "chosen_library", "engine_limits"]

# Room for the 1024 tokens of the uncompressed baseline and as many again; the cache is allocated in full.
DEFAULT_SEQ_LEN = 2048
_MAX_OPTIMIZATION_LEVEL = 5
_CAPABILITY = re.compile(r"[1-9][0-9]?\.[0-9]")
# A prompt's own tokens and one of the answer, beside the video.
_LEAST_TEXT_TOKENS = 2


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """How engines are to be built.

    Raises:
        UsageError: a value that no library takes.
    """

    library: Library | None = None  # None: that of the bundle's target
    max_batch_size: int = 1  # clips, and rows of the decoder
    max_frames: int | None = None  # of a clip; None: as many as the bundle was exported for
    max_seq_len: int | None = None  # None: the model's context, at most ``DEFAULT_SEQ_LEN``
    prefill_chunk: int | None = None  # None: what the runtime sends at once, at most ``max_seq_len``
    compute_capability: tuple[str, ...] = ()  # "8.6"; for TensorRT-RTX alone; (): this GPU, else the usual ones
    workspace_bytes: int | None = None  # scratch memory of the GPU; None: all of it
    optimization_level: int | None = None  # 0 (quick to build) to 5 (quick to run); None: the library's default
    version_compatible: bool = False  # later versions of TensorRT may load the engine; not for TensorRT-RTX
    hardware_compatibility: HardwareCompatibility = "none"  # not for TensorRT-RTX

    def __post_init__(self) -> None:
        if self.optimization_level is not None and not 0 <= self.optimization_level <= _MAX_OPTIMIZATION_LEVEL:
            raise UsageError(
                f"optimization_level is {self.optimization_level}; 0 to {_MAX_OPTIMIZATION_LEVEL} are allowed"
            )
        if self.workspace_bytes is not None and self.workspace_bytes < 1:
            raise UsageError(f"workspace_bytes is {self.workspace_bytes}; at least 1 is needed")
        _check_capabilities(self.compute_capability)


def chosen_library(bundle: Bundle, request: EngineRequest) -> Library:
    """The library that builds, which has to take everything that was asked for.

    Raises:
        UsageError: the bundle's graphs are not for TensorRT, or an option has no effect with the library.
    """
    target = bundle.manifest.target
    if target == DEFAULT_TARGET:
        manifest = bundle.manifest
        same = f"`encoder='{manifest.encoder}'` `precision='{manifest.precision.name}'`"
        raise UsageError(
            f"{bundle.path} was exported for {target}, whose operators TensorRT does not have",
            remedy=f"run `blip3v export` with {same} `target='tensorrt-rtx'`, or `target='tensorrt'`",
        )
    library = request.library or library_of(target)
    if library == "tensorrt" and request.compute_capability:
        raise UsageError(
            "compute_capability is for TensorRT-RTX alone: TensorRT builds for the GPU of this machine",
            remedy="leave `compute_capability` out, or build with `library='tensorrt_rtx'`",
        )
    if library == "tensorrt_rtx" and request.version_compatible:
        raise UsageError(
            "version_compatible is for TensorRT alone: engines of TensorRT-RTX belong to one version",
            remedy="leave `version_compatible` out",
        )
    if library == "tensorrt_rtx" and request.hardware_compatibility != "none":
        raise UsageError(
            f"hardware_compatibility is {request.hardware_compatibility!r}, which TensorRT-RTX does not have",
            remedy="list the GPUs instead: `compute_capability='8.6,8.9'`",
        )
    return library


def engine_limits(bundle: Bundle, request: EngineRequest) -> EngineLimits:
    """The limits of the profiles: what was asked for, else the bundle's own, checked against what it can do.

    Raises:
        UsageError: the bundle cannot do that much, or the engines could not answer about a usual clip.
    """
    manifest = bundle.manifest
    context, frames = manifest.limits.max_context, manifest.num_frames
    max_frames = frames if request.max_frames is None else request.max_frames
    max_seq_len = min(context, DEFAULT_SEQ_LEN) if request.max_seq_len is None else request.max_seq_len
    chunk = min(PREFILL_CHUNK, max_seq_len) if request.prefill_chunk is None else request.prefill_chunk
    try:
        limits = EngineLimits(
            max_batch_size=request.max_batch_size, max_frames=max_frames, max_seq_len=max_seq_len, prefill_chunk=chunk
        )
    except ConfigError as error:
        raise UsageError(str(error)) from error
    least = manifest.num_video_tokens + _LEAST_TEXT_TOKENS
    if max_seq_len > context:
        raise UsageError(f"max_seq_len is {max_seq_len}; the model's context has {context} tokens, ask for no more")
    if max_seq_len < least:
        raise UsageError(
            f"max_seq_len is {max_seq_len}; {manifest.num_video_tokens} video tokens, a prompt and an answer need at "
            f"least {least}"
        )
    if chunk > max_seq_len:
        raise UsageError(f"prefill_chunk is {chunk}; at most max_seq_len, {max_seq_len}, is allowed")
    if max_frames < frames:
        raise UsageError(f"max_frames is {max_frames}; a clip has {frames} frames, at least as many are needed")
    axis = manifest.graphs["video_encoder"].inputs[0].axes[1]
    if isinstance(axis, int) and max_frames != axis:
        raise UsageError(f"max_frames is {max_frames}; the video encoder was exported for {axis} frames, no others")
    return limits


def _check_capabilities(capabilities: Sequence[str]) -> None:
    wrong = [capability for capability in capabilities if not _CAPABILITY.fullmatch(capability)]
    if wrong:
        raise UsageError(
            f"compute_capability is {', '.join(map(repr, wrong))}; numbers such as 8.6 or 12.0 are expected"
        )
    if len(set(capabilities)) != len(capabilities):
        raise UsageError(f"compute_capability lists {', '.join(capabilities)}; each once is enough")
