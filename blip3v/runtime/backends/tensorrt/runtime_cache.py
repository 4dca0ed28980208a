"""The kernels that TensorRT-RTX compiled on this GPU, kept beside their engine so that the next opening has them.

TensorRT-RTX finishes an engine on the GPU that runs it: each kernel is compiled before it first runs. What it compiled
it gives out as bytes, and takes back after checks of its own: of its version, the GPU and the driver. Like an engine
the file may be deleted; unlike one it is not hashed. Nothing here raises: without the file the first runs take longer.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from blip3v.errors import BackendError
from blip3v.publishing import in_words, write_file
from blip3v.runtime.backends.tensorrt.library import Caller

__all__ = ["RuntimeCache", "cache_file"]

_LOG = logging.getLogger(__name__)


def cache_file(engine: Path, compute_capability: str) -> Path:
    """Where the kernels of an engine are kept for GPUs of a compute capability: ``decoder.sm86.kernels``."""
    return engine.with_suffix(f".sm{compute_capability.replace('.', '')}.kernels")


class RuntimeCache:
    """The compiled kernels of one engine. It has to outlive every context that it is attached to.

    Made and saved by a thread whose current CUDA context is that of the GPU.

    Args:
        trt: TensorRT-RTX.
        engine: opened.
        path: of the file, which need not exist.
    """

    def __init__(self, trt: Caller, engine: Any, path: Path) -> None:
        self._trt = trt
        self._path = path
        self._saved = b""  # hash of what the file holds
        self._cache: Any | None = None  # None: TensorRT-RTX makes none
        try:
            with trt.calling("making a runtime cache"):
                self._cache = engine.create_runtime_config().create_runtime_cache()
                self._load()
        except BackendError as error:
            _LOG.info("%s is not used: %s", path, error)

    def attach(self, config: Any) -> None:
        """Has contexts that are made with a runtime configuration take kernels from here, and put new ones here."""
        if self._cache is not None and not config.set_runtime_cache(self._cache):
            _LOG.info("%s is not used: TensorRT-RTX does not take a runtime cache for this context", self._path)

    def save(self) -> None:
        """Writes the file, if kernels were compiled since it was read."""
        if self._cache is None:
            return
        try:
            with self._trt.calling("reading the runtime cache"):
                blob = self._cache.serialize()
                self._trt.require(blob is not None, "serialising it")
                content = bytes(memoryview(blob))
            digest = hashlib.sha256(content).digest()
            if content and digest != self._saved:
                write_file(self._path, content)
                self._saved = digest
                _LOG.info("kept the compiled kernels in %s", self._path)
        except BackendError as error:
            _LOG.info("%s is not written: %s", self._path, error)
        except OSError as error:
            _LOG.info("%s is not written: %s", self._path, in_words(error, self._path))

    def _load(self) -> None:
        try:
            content = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            _LOG.info("%s is not read: %s", self._path, in_words(error, self._path))
            return
        assert self._cache is not None
        if content and self._cache.deserialize(content):
            self._saved = hashlib.sha256(content).digest()
        else:
            _LOG.info("%s was made by another version, GPU or driver, or is damaged; kernels are compiled", self._path)
