"""Every error that blip3v raises on purpose.

    Blip3vError                      exit code
    |- UsageError                    2   an option or argument that cannot be used
    |- ConfigError                   2   a config, recipe or preset that is not valid
    |- ArtifactError                 3   a model folder or bundle
    |  |- ArtifactMissingError       3     a file is not there
    |  |- ArtifactHashError          3     a file is not the one that was written
    |  `- ArtifactVersionError       3     written by a schema that this version does not read
    |- ExportError                   4   a graph could not be made
    |- ParityError                   5   a graph was made and does not match PyTorch
    |- CalibrationError              4   activation ranges could not be had
    |- BackendError                  6   the inference engine
    |  |- ProviderError              6     the provider or package that was asked for is not there
    |  |- OutOfMemoryError           6     the model does not fit
    |  `- EngineMismatchError        6     the engine was built for something else
    |- VideoError                    7   the video
    |  |- UnsupportedVideoError      7     not a video, or no picture stream
    |  |- VideoTooLargeError         7     over a limit
    |  |- CorruptVideoError          7     a wanted frame cannot be had
    |  `- VideoTimeoutError          7     decoding took longer than allowed
    |- RequestError                  8   a request that the model cannot serve (prompt too long, bad options)
    |  |- CancelledError             8     the caller took it back
    |  `- RequestTimeoutError        8     it took longer than the caller allowed
    `- ServerError                   9   the HTTP server

A message has three parts: what was wrong with the actual value, what is allowed, and what to run or do next. Where the
last part names parameters, it is the ``remedy``, in Python's words: the command line writes them as options.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "ArtifactError",
    "ArtifactHashError",
    "ArtifactMissingError",
    "ArtifactVersionError",
    "BackendError",
    "Blip3vError",
    "CalibrationError",
    "CancelledError",
    "ConfigError",
    "CorruptVideoError",
    "EngineMismatchError",
    "ExportError",
    "OutOfMemoryError",
    "ParityError",
    "ProviderError",
    "RequestError",
    "RequestTimeoutError",
    "ServerError",
    "UnsupportedVideoError",
    "UsageError",
    "VideoError",
    "VideoTimeoutError",
    "VideoTooLargeError",
]


class Blip3vError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with.

    Args:
        message: what was wrong and what is allowed; it may say what to do.
        remedy: what to do where that names parameters, each in backquotes, with its value where one is meant:
            "choose another `folder`, or replace it with `force=True`". ``str`` gives both parts.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class UsageError(Blip3vError):
    """An option or argument that cannot be used."""

    exit_code = 2


class ConfigError(Blip3vError):
    """A config, recipe or preset that is not valid."""

    exit_code = 2


class ArtifactError(Blip3vError):
    """A model folder or bundle that cannot be used."""

    exit_code = 3


class ArtifactMissingError(ArtifactError):
    """A file of a model folder or bundle is not there."""


class ArtifactHashError(ArtifactError):
    """A file of a bundle is not the one that was written."""


class ArtifactVersionError(ArtifactError):
    """A model folder or bundle of a schema that this version does not read."""


class ExportError(Blip3vError):
    """A graph could not be made."""

    exit_code = 4


class CalibrationError(Blip3vError):
    """Activation ranges could not be had."""

    exit_code = 4


class ParityError(Blip3vError):
    """A graph was made and its numbers do not match the PyTorch reference."""

    exit_code = 5


class BackendError(Blip3vError):
    """The inference engine failed."""

    exit_code = 6


class ProviderError(BackendError):
    """The provider or package that was asked for is not there."""


class OutOfMemoryError(BackendError):
    """The model or the request does not fit into memory."""


class EngineMismatchError(BackendError):
    """An engine that was built for another version, device or graph."""


class VideoError(Blip3vError):
    """The video cannot be used."""

    exit_code = 7


class UnsupportedVideoError(VideoError):
    """Not a video, or a file without a picture stream."""


class VideoTooLargeError(VideoError):
    """A video over a limit of bytes, pixels, frames or duration."""


class CorruptVideoError(VideoError):
    """A frame that was asked for is not there or cannot be decoded."""


class VideoTimeoutError(VideoError):
    """Decoding took longer than allowed."""


class RequestError(Blip3vError):
    """A request that this model cannot serve."""

    exit_code = 8


class CancelledError(RequestError):
    """The caller took the request back."""


class RequestTimeoutError(RequestError):
    """The request took longer than the caller allowed."""


class ServerError(Blip3vError):
    """The HTTP server could not start or go on."""

    exit_code = 9
