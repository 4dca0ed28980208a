"""What opening a bundle takes, before anything is loaded: of the machine's memory, and of a device that has its own.

Numbers of the model and its engines; what an engine's package takes for itself is a constant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from blip3v.bundle.reader import Bundle
from blip3v.config import ModelConfig
from blip3v.errors import OutOfMemoryError
from blip3v.runtime import memory
from blip3v.runtime.backends import PREFILL_CHUNK, Backend, Footprint, GraphFile, GraphName
from blip3v.runtime.memory import HOST, Memory
from blip3v.runtime.types import BackendReport
from blip3v.units import format_bytes, format_duration

__all__ = ["DeviceNeed", "OpenEstimate", "estimate"]

# Memory of the engines and the tokenizer, without weights and cache.
_FIXED_BYTES = 192 * 2**20
# Activations at their widest, in values: a prefill chunk's gate and up, or attention scores and MLP of a clip's frames.
_WIDENED_BYTES = 4
# Question and answer of an ordinary request, tokens.
_USUAL_TOKENS = 256
# A model of this size takes long enough to open to say so first.
_LARGE_BYTES = 2**30
# Of opening, whatever the size.
_OPEN_S = 0.5


@dataclass(frozen=True, kw_only=True)
class DeviceNeed:
    """What opening a bundle and an ordinary question take of the memory that a device has for itself."""

    device: str  # for sentences: "the GPU"
    weights_bytes: int
    activation_bytes: int
    cache_bytes: int
    limit_bytes: int | None  # what it has; None: it does not say
    limit: str  # what that is: "free", or "in all" where it does not say how much of it is free

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.activation_bytes + self.cache_bytes

    def require(self, what: str) -> None:
        """Raises if the device has not that much.

        Raises:
            OutOfMemoryError: it has not. The message says ``what`` needs how much of what.
        """
        if self.limit_bytes is not None and self.memory_bytes > self.limit_bytes:
            parts = {"weights": self.weights_bytes, "activations": self.activation_bytes, "a cache": self.cache_bytes}
            raise OutOfMemoryError(
                f"{self.device} has {format_bytes(self.limit_bytes)} {self.limit}, and {what} needs about "
                f"{format_bytes(self.memory_bytes)} there: "
                + ", ".join(f"{format_bytes(size)} for {part}" for part, size in parts.items() if size),
                remedy="end other programs that use it, export with a smaller precision, or choose `device='cpu'`",
            )

    def __str__(self) -> str:
        known = "" if self.limit_bytes is None else f" of the {format_bytes(self.limit_bytes)} {self.limit}"
        return f"{format_bytes(self.memory_bytes)}{known} on {self.device}"


@dataclass(frozen=True, kw_only=True)
class OpenEstimate:
    """Rough cost of opening a bundle and asking an ordinary question."""

    backend: BackendReport  # what would compute it
    memory_bytes: int  # of the machine's, that must be free; mapped files, which the system can drop, are not counted
    free_bytes: int | None  # of the machine's; None if the system does not say
    seconds: float  # of opening
    devices: tuple[DeviceNeed, ...] = ()  # those with memory of their own, such as a graphics card

    @property
    def is_large(self) -> bool:
        """Whether opening takes long enough to say so first."""
        return self.memory_bytes + sum(need.memory_bytes for need in self.devices) >= _LARGE_BYTES

    def require(self, what: str) -> None:
        """Raises if the machine or a device has less memory than that.

        Raises:
            OutOfMemoryError: one has. The message says how much ``what`` needs.
        """
        memory.require(self.memory_bytes, what, "free some, or use a smaller model")
        for need in self.devices:
            need.require(what)

    def __str__(self) -> str:
        free = "" if self.free_bytes is None else f" of {format_bytes(self.free_bytes)} that are free"
        host = f"about {format_bytes(self.memory_bytes)} of memory{free}"
        return ", ".join([host, *map(str, self.devices), format_duration(self.seconds)])


def estimate(
    bundle: Bundle, config: ModelConfig, graphs: Mapping[GraphName, GraphFile], backends: Mapping[GraphName, Backend]
) -> OpenEstimate:
    """Weights, the cache of an ordinary request and the widest activations; the embedding table is mapped.

    Args:
        bundle: to be opened.
        config: of its model, with the context that is wanted.
        graphs: its files.
        backends: what opens each.
    """
    found = {name: backends[name].footprint(graph) for name, graph in graphs.items()}
    weights = Counter({HOST: sum(each.host_bytes for each in found.values())})
    for each in found.values():
        weights[each.memory] += each.weights_bytes
    activations = _activation_bytes(config, found)
    num_tokens = min(bundle.manifest.num_video_tokens + _USUAL_TOKENS, config.text.max_context)
    num_tokens = found["decoder"].row_tokens or num_tokens
    token_bytes = backends["decoder"].kv_bytes_per_token(config.text, graphs["decoder"])
    caches = Counter({found["decoder"].caches: num_tokens * token_bytes})
    devices = [
        DeviceNeed(
            device=each.name,
            weights_bytes=weights[each],
            activation_bytes=activations[each],
            cache_bytes=caches[each],
            limit_bytes=each.free_bytes(),
            limit=each.bound,
        )
        for each in {**weights, **caches}
        if each is not HOST
    ]
    return OpenEstimate(
        backend=BackendReport(
            stored=bundle.manifest.precision.name,
            video_encoder=backends["video_encoder"].execution(graphs["video_encoder"].precision),
            decoder=backends["decoder"].execution(graphs["decoder"].precision),
        ),
        memory_bytes=_FIXED_BYTES + weights[HOST] + caches[HOST] + activations[HOST],
        free_bytes=HOST.free_bytes(),
        devices=tuple(devices),
        seconds=_OPEN_S + max(backends[name].open_s(graph) for name, graph in graphs.items()),
    )


def _activation_bytes(config: ModelConfig, found: Mapping[GraphName, Footprint]) -> Counter[Memory]:
    """What engines hold for their runs; for those that do not tell, the widest activations of the larger run."""
    vision, text = config.vision, config.text
    clip_tokens = config.num_frames * vision.num_patches
    widest: dict[GraphName, int] = {
        "video_encoder": clip_tokens * (2 * vision.intermediate_size + vision.num_heads * vision.num_patches),
        "decoder": PREFILL_CHUNK * (4 * text.intermediate_size + text.num_heads * PREFILL_CHUNK),
    }
    held, passing = Counter[Memory](), Counter[Memory]()
    for name, each in found.items():
        held[each.memory] += each.activation_bytes or 0
        if each.activation_bytes is None:
            passing[each.memory] = max(passing[each.memory], _WIDENED_BYTES * widest[name])
    return held + passing
