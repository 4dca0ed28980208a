"""Every error that blip3v raises on purpose.

    Blip3vError                      exit code
    |- UsageError                    2   an option or argument that cannot be used
    |- ConfigError                   2   a config, recipe or preset that is not valid
    |- ArtifactError                 3   a model folder or bundle
    |  |- ArtifactMissingError       3     a file is missing
    |  |- ArtifactHashError          3     a file has changed since it was written
    |  `- ArtifactVersionError       3     written with a schema that this version does not read
    |- ExportError                   4   a graph could not be exported
    |- ParityError                   5   an exported graph does not match PyTorch
    |- CalibrationError              4   activation ranges could not be obtained
    |- BackendError                  6   the inference engine
    |  |- ProviderError              6     the requested provider or package is not available
    |  |- OutOfMemoryError           6     the model does not fit
    |  `- EngineMismatchError        6     the engine was built for something else
    |- VideoError                    7   the video
    |  |- UnsupportedVideoError      7     not a video, or no video stream
    |  |- VideoTooLargeError         7     over a limit
    |  |- CorruptVideoError          7     a requested frame is missing or cannot be decoded
    |  `- VideoTimeoutError          7     decoding took longer than allowed
    |- RequestError                  8   a request that the model cannot serve (prompt too long, bad options)
    |  |- CancelledError             8     the caller cancelled it
    |  `- RequestTimeoutError        8     it took longer than the caller allowed
    |- ServerError                   9   the HTTP server
    |- SlowerError                   10  a measurement is slower than its baseline allows
    `- EndpointError                 11  an endpoint that others run: unreachable, refusing, or at the limit of cost

A message has three parts: what is wrong with the actual value, what is allowed, and what to run or do next. If the
last part names parameters, it is the ``remedy``, written as Python arguments; the command line shows them as options.
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
    "EndpointError",
    "EngineMismatchError",
    "ExportError",
    "OutOfMemoryError",
    "ParityError",
    "ProviderError",
    "RequestError",
    "RequestTimeoutError",
    "ServerError",
    "SlowerError",
    "UnsupportedVideoError",
    "UsageError",
    "VideoError",
    "VideoTimeoutError",
    "VideoTooLargeError",
]


class Blip3vError(Exception):
    """Root of the tree. ``exit_code`` is what the command line ends with.

    Args:
        message: what is wrong and what is allowed; it may also say what to do.
        remedy: what to do, if that names parameters: each in backquotes, with a value if it needs one:
            "choose another `folder`, or replace it with `force=True`". ``str`` returns both parts.
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
    """A file of a model folder or bundle is missing."""


class ArtifactHashError(ArtifactError):
    """A file of a bundle has changed since it was written."""


class ArtifactVersionError(ArtifactError):
    """A model folder or bundle with a schema that this version does not read."""


class ExportError(Blip3vError):
    """A graph could not be exported."""

    exit_code = 4


class CalibrationError(Blip3vError):
    """Activation ranges could not be obtained."""

    exit_code = 4


class ParityError(Blip3vError):
    """The numbers of an exported graph do not match the PyTorch reference."""

    exit_code = 5


class BackendError(Blip3vError):
    """The inference engine failed."""

    exit_code = 6


class ProviderError(BackendError):
    """The requested provider or package is not available."""


class OutOfMemoryError(BackendError):
    """The model or the request does not fit in memory."""


class EngineMismatchError(BackendError):
    """The engine was built for another version, device or graph."""


class VideoError(Blip3vError):
    """The video cannot be used."""

    exit_code = 7


class UnsupportedVideoError(VideoError):
    """Not a video, or a file without a video stream."""


class VideoTooLargeError(VideoError):
    """The video exceeds a limit on bytes, pixels, frames or duration."""


class CorruptVideoError(VideoError):
    """A requested frame is missing or cannot be decoded."""


class VideoTimeoutError(VideoError):
    """Decoding took longer than allowed."""


class RequestError(Blip3vError):
    """A request that this model cannot serve."""

    exit_code = 8


class CancelledError(RequestError):
    """The caller cancelled the request."""


class RequestTimeoutError(RequestError):
    """The request took longer than the caller allowed."""


class ServerError(Blip3vError):
    """The HTTP server could not start or keep running."""

    exit_code = 9


class SlowerError(Blip3vError):
    """A median of a measurement is slower than its baseline by more than the tolerance."""

    exit_code = 10


class EndpointError(Blip3vError):
    """An endpoint that others run cannot be reached, refuses, answers nonsense, or has cost what it may."""

    exit_code = 11
