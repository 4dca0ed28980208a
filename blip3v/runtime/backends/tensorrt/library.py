"""Calls of TensorRT: its log, its exceptions and its results that say no, all turned into our errors here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import get_args

from blip3v.bundle.engines import LIBRARY_NAMES, Library
from blip3v.errors import ProviderError
from blip3v.extras import pip_line
from blip3v.runtime.engine_errors import engine_errors
from blip3v.runtime.tensorrt_library import TensorRT, is_installed, load_tensorrt
from blip3v.runtime.tensorrt_log import tensorrt_log

__all__ = ["Caller", "installed_libraries", "load_only", "needed_libraries"]


def installed_libraries() -> tuple[Library, ...]:
    """The libraries whose packages are there, working or not. Imports nothing."""
    return tuple(library for library in get_args(Library) if is_installed(library))


def needed_libraries(built_with: Collection[Library]) -> tuple[Library, ...]:
    """The installed libraries that engines were built with; if there is none, the first that is installed.

    No others, since both libraries in one process need not get along.

    Raises:
        ProviderError: none is installed.
    """
    installed = installed_libraries()
    if not installed:
        raise ProviderError(
            f"TensorRT is not installed; install it: `{pip_line('tensorrt')}`, or for an RTX card "
            f"`{pip_line('tensorrt-rtx')}`"
        )
    return tuple(library for library in installed if library in built_with) or installed[:1]


def load_only() -> TensorRT | None:
    """The installed library, imported; None if both are installed: which one is needed, a bundle's engines say.

    Raises:
        ProviderError: none is installed, or it cannot be imported.
    """
    (first, *_) = needed_libraries(())
    return load_tensorrt(first) if len(installed_libraries()) == 1 else None


class Caller:
    """Makes calls of one library.

    Args:
        tensorrt: the library.
    """

    def __init__(self, tensorrt: TensorRT) -> None:
        self.tensorrt = tensorrt
        self.module = tensorrt.module
        self._log = tensorrt_log(tensorrt.module)
        self.logger = self._log.logger

    @contextmanager
    def calling(self, doing: str) -> Iterator[None]:
        """Turns what the library raises inside the block into our errors; ``doing`` begins the message."""
        self._log.forget()
        with engine_errors(LIBRARY_NAMES[self.tensorrt.library], self.module.__name__, doing):
            yield

    def require(self, succeeded: object, doing: str) -> None:
        """Raises if a call says that it failed, with what the library logged. Only inside ``calling``."""
        if not succeeded:
            # As the library itself would raise it: ``engine_errors`` tells a lack of memory from the rest.
            raise RuntimeError(f"{doing}: {self._log.reasons()}")
