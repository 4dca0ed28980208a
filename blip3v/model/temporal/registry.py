"""The available temporal encoders: those of this package, and those that installed packages register.

Another package registers one as an entry point in the group ``blip3v.temporal_encoders``: its name and its
``EncoderSpec``. In its pyproject.toml:

    [project.entry-points."blip3v.temporal_encoders"]
    my-encoder = "my_package.my_encoder:ENCODER"

Listing names reads the metadata of installed packages and imports none of them, nor torch.
"""

from __future__ import annotations

import functools
import importlib
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from blip3v.errors import ConfigError
from blip3v.model.temporal.spec import EncoderSpec

__all__ = ["BUILT_IN", "GROUP", "encoder_names", "find_encoder"]

GROUP = "blip3v.temporal_encoders"

# One encoder per line. Its module in this folder has the same name, with underscores for hyphens.
BUILT_IN = (
    "tokenlearner",
    "gttm",
    "ttm",
    "transformer",
    "perceiver",
    "mean",
    "max",
    "per-frame",
    "space-time-pool",
    "none",
    "single-frame",
    "mambalike",
    "video-chatgpt",
    "pllava",
    "slowfast-llava",
    "llama-vid-content",
)


def encoder_names() -> tuple[str, ...]:
    """Returns every encoder's name: the built-in ones, then those of installed packages, sorted."""
    others = {point.name for point in _installed()} - set(BUILT_IN)
    return (*BUILT_IN, *sorted(others))


def find_encoder(name: str) -> EncoderSpec[Any]:
    """Returns the encoder ``name``; imports its module, and with it torch.

    Raises:
        ConfigError: no encoder or several have this name, or the package that provides it cannot be used.
    """
    points = [point for point in _installed() if point.name == name]
    providers = ["blip3v"] * (name in BUILT_IN) + [_provider(point) for point in points]
    if not providers:
        raise ConfigError(f"encoder {name!r} is unknown; allowed: {', '.join(encoder_names())}")
    if len(providers) > 1:
        raise ConfigError(
            f"encoder {name!r} is provided by {' and by '.join(providers)}; a name must be unique: uninstall the "
            "other package, or ask its authors to rename theirs"
        )
    if not points:
        built_in: EncoderSpec[Any] = importlib.import_module(f"{__package__}.{name.replace('-', '_')}").ENCODER
        return built_in
    return _load(points[0])


@functools.cache
def _installed() -> tuple[EntryPoint, ...]:
    # Installed packages do not change while a process runs, and reading their metadata takes a while.
    return tuple(entry_points(group=GROUP))


def _load(point: EntryPoint) -> EncoderSpec[Any]:
    try:
        spec = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"encoder {point.name!r} of {_provider(point)} cannot be loaded: {error}; install the package again, or "
            "uninstall it"
        ) from error
    if not isinstance(spec, EncoderSpec):
        raise ConfigError(
            f"encoder {point.name!r} of {_provider(point)} is of type {type(spec).__name__}; an EncoderSpec of "
            f"{EncoderSpec.__module__} is expected"
        )
    return spec


def _provider(point: EntryPoint) -> str:
    package = "a package without metadata" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return f"{package} ({point.value})"
